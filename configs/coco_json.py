r"""Your own data in COCO format: two JSON files, two image folders.

The number of classes is read from the training JSON. The schedule counts passes over the images.
The defaults train from random initialisation and suit small sets of small images. The argument
`coco_json.py:backbone=resnet50` starts from ImageNet weights of the Hugging Face Hub and sets all
that belongs to them; with more memory or larger images, change the fields below.

    python -m atss_jax.main --config=configs/coco_json.py --workdir=workdirs/mine \
      --config.data.train_annotations=... --config.data.train_images=... \
      --config.data.val_annotations=... --config.data.val_images=...
"""

from dataclasses import replace

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.run.pretrained_recipe import with_backbone
from atss_jax.run.recipe import Recipe


def recipe(arg: str = "") -> Recipe:
    """The recipe.

    Args:
      arg: "backbone=..." for a pretrained one of `models/weight_table.py`.

    Raises:
      ValueError: unknown names or values.
    """
    backbone = common.parse_arg(arg, backbone="")["backbone"]
    random = _from_random()
    return with_backbone(random, backbone) if backbone else random


def _from_random() -> Recipe:
    """The recipe without its argument."""
    base = atss_r50_fpn_1x.recipe()
    return replace(
        base,
        data=replace(
            base.data,
            name="coco_json",
            train_annotations="",  # give the four paths on the command line
            train_images="",
            val_annotations="",
            val_images="",
            filter_empty=False,  # images without objects teach the background
            global_batch=4,  # twice the steps of 8 in the same time
            buckets=((256, 320), (320, 256)),
            short_side=240,
            max_long_side=320,
            augmentations=("flip(0.5)", "scale_crop(0.75, 1.33)", "color_jitter(0.2)"),
            num_workers=0,
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
            channel_order="rgb",
        ),
        # half-width ResNet-18, 64 channels, short towers: trains on a CPU. Distances as
        # distributions (configs/beyond.py, dfl) learn faster where the schedule is short.
        model=replace(
            base.model,
            backbone="resnet18",
            flavour="torchvision",
            backbone_norm="batch_norm",
            frozen_stages=0,
            init_from="",
            width=0.5,
            stem_channels=32,
            fpn_channels=64,
            head_convs=2,
            regression="point",
            side_bins=16,
        ),
        optim=replace(
            base.optim,
            num_steps=0,
            num_epochs=26.0,
            reference_batch=4,
            schedule="cosine",
            learning_rate=0.015,
            warmup="linear",
            warmup_steps=100,
            clip_norm=10.0,
            ema_decay=0.995,
        ),
        eval=replace(base.eval, batch_size=8),
        run=replace(base.run, log_every=20, checkpoint_every=200, eval_every=300),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
