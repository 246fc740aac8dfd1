"""Input: annotation files and records in, host batches out. Never touches a device.

`dataset` (the one description of a set), `coco` (JSON file and folder), `tfds_builders` and
`synthetic` (records), `batch_plan` (which images when), `augment` (what is done to them), `images`
(pixels), `loader` (batches).
"""
