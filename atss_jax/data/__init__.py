"""Input: annotation files and records in, host batches out. Never touches a device.

`dataset` (the one description of a set), `sources` (the recipe's set), `layouts` (what a folder
holds), `coco`, `yolo` and `voc` (readers), `content` (their checks), `tfds_builders` and
`synthetic` (records), `batch_plan` (which images when), `augment` (what is done to them), `images`
(pixels), `loader` (batches).
"""
