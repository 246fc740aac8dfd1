r"""Your own data in COCO format: two JSON files, two image folders.

The number of classes is read from the training JSON. The schedule counts passes over the images.
The defaults train from random initialisation and suit small sets of small images; with weights
(`--config.model.init_from`), more memory or larger images, change the fields below.

    python -m atss_jax.main --config=configs/coco_json.py --workdir=workdirs/mine \
      --config.data.train_annotations=... --config.data.train_images=... \
      --config.data.val_annotations=... --config.data.val_images=...
"""

from ml_collections import ConfigDict

from configs import atss_r50_fpn_1x, common


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it takes no argument."""
    if arg:
        raise ValueError(f"config argument {arg!r}: configs/coco_json.py takes none.")
    config = common.editable(atss_r50_fpn_1x.get_config())
    data, model, optim, run = config.data, config.model, config.optim, config.run

    data.name = "coco_json"
    data.train_annotations = data.train_images = ""  # give them on the command line
    data.val_annotations = data.val_images = ""
    data.filter_empty = False  # images without objects teach the background
    data.global_batch = 8
    data.buckets = ((256, 320), (320, 256))
    data.short_side, data.max_long_side = 240, 320
    data.augmentations = ("flip(0.5)", "color_jitter(0.2)")
    data.num_workers = 0
    data.mean, data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    data.channel_order = "rgb"

    model.backbone, model.flavour = "resnet18", "torchvision"
    model.backbone_norm = "batch_norm"
    model.frozen_stages = 0
    model.init_from = ""
    model.width = 0.5  # half-width ResNet-18, 64 channels, short towers: trains on a CPU
    model.fpn_channels = 64
    model.head_convs = 2

    optim.num_steps, optim.num_epochs = 0, 26.0
    optim.reference_batch = 8
    optim.schedule = "cosine"
    optim.learning_rate = 0.02
    optim.warmup, optim.warmup_steps = "linear", 50
    optim.clip_norm = 10.0

    config.eval.batch_size = 8
    run.log_every, run.checkpoint_every, run.eval_every = 10, 100, 150
    return config.lock()
