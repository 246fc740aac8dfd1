r"""ATSS with ResNet-50-FPN, 1x schedule: the paper's main recipe, and every field there is.

Paper: Table 8, "ATSS ResNet-50" row of the official repository: AP 39.3 on COCO val2017
(arXiv 1912.02424). 90,000 steps of 16 images; about 4 hours on eight V100 in the paper's setting.
Not run to the end by this project.

    python -m atss_jax.main --config=configs/atss_r50_fpn_1x.py --workdir=workdirs/atss_r50

The numbers follow the official code. Other recipes start from this one and change fields.
"""

from ml_collections import ConfigDict

IMAGENET_MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""Mean pixel of the MSRA/FAIR weights, in 0..255, BGR; they divide by nothing."""


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; it takes no argument (ablations have files of their own)."""
    if arg:
        raise ValueError(f"config argument {arg!r}: configs/atss_r50_fpn_1x.py takes none.")
    config = ConfigDict()
    config.data = data()
    config.model = model()
    config.anchors = ConfigDict(
        {
            "anchor_scale": 8.0,  # paper Sec. 4.1: one square anchor of 8S a location
            "scales_per_octave": 1,
            "aspect_ratios": (1.0,),
            "center_offset": 0.5,  # centres in the middle of their cell
            "offset_px": 0.0,  # 0.5 for imported official checkpoints
        }
    )
    config.assigner = ConfigDict(
        {
            "name": "atss",
            "candidates_per_level": 9,  # paper Table 4: k = 9
            "foreground_iou": 0.5,  # RetinaNet Sec. 4, read by max_iou only
            "background_iou": 0.4,
            "center_radius": 0.0,  # FCOS; 1.5 is centre sampling, read by spatial_scale only
            "positives_in_box": True,  # paper Table 1, "In GT Box"
        }
    )
    config.loss = ConfigDict(
        {
            "box_loss": "giou",  # paper Table 1
            "box_loss_weight": 2.0,  # official REG_LOSS_WEIGHT
            "focal_alpha": 0.25,  # RetinaNet Sec. 5.1
            "focal_gamma": 2.0,
            "normalizer": "positives",
        }
    )
    config.optim = optim()
    config.eval = evaluation()
    config.run = run()
    config.predict = ConfigDict({"input": "", "output": "", "score_threshold": 0.3})
    config.export = ConfigDict({"format": "stablehlo", "batch_size": 1, "platforms": ("cpu",)})
    return config.lock()


def data() -> ConfigDict:
    """COCO 2017 at the official size."""
    return ConfigDict(
        {
            "source": "coco_json",
            "name": "coco2017",
            "data_dir": "data",
            "train_annotations": "data/coco/annotations/instances_train2017.json",
            "train_images": "data/coco/train2017",
            "val_annotations": "data/coco/annotations/instances_val2017.json",
            "val_images": "data/coco/val2017",
            "train_split": "train",
            "val_split": "validation",
            "on_error": "strict",
            "max_bad_fraction": 0.01,
            "exif": "ignore",  # COCO's boxes were drawn on the stored pixels
            "filter_empty": True,  # official: images without usable boxes are left out
            "global_batch": 16,  # paper Sec. 3.1
            # 4:3, 3:2 and the rest, landscape and portrait: 4.0 % padding on COCO
            "buckets": (
                (800, 1088),
                (800, 1216),
                (800, 1344),
                (1088, 800),
                (1216, 800),
                (1344, 800),
            ),
            "short_side": 800,  # paper Sec. 3.1
            "max_long_side": 1333,
            "train_short_sides": (),
            "augmentations": ("flip(0.5)",),
            "max_boxes": 100,  # COCO train has at most 93 in an image
            "on_overflow": "error",
            "num_workers": 8,
            "prefetch": 2,
            "mean": IMAGENET_MEAN_BGR,
            "std": (1.0, 1.0, 1.0),
            "channel_order": "bgr",
        }
    )


def model() -> ConfigDict:
    """ResNet-50-FPN with the official head."""
    return ConfigDict(
        {
            "backbone": "resnet50",
            "flavour": "msra",  # the official weights: stride in the first 1x1
            "backbone_norm": "frozen_bn",
            "width": 1.0,
            "frozen_stages": 2,  # official FREEZE_CONV_BODY_AT: stem and C2
            "dcn_stages": (),
            "init_from": "data/weights/R-50.safetensors",  # scripts/convert_weights.py
            "fpn_channels": 256,
            "p6_from": "p5",
            "relu_before_p7": True,
            "head_convs": 4,
            "head_norm": "group_norm",
            "head_dcn": False,
            "level_scale": True,
            "centerness": "box",
            "regression": "box",
            "point_activation": "relu",
            "dtype": "float32",
            "remat": "none",
        }
    )


def optim() -> ConfigDict:
    """SGD, 90,000 steps."""
    return ConfigDict(
        {
            "name": "sgd",
            "learning_rate": 0.01,  # for 16 images, paper Sec. 3.1
            "reference_batch": 16,
            "lr_scaling": "linear",
            "schedule": "steps",
            "num_steps": 90_000,
            "num_epochs": 0.0,
            "decay_at": (60 / 90, 80 / 90),  # 60k and 80k steps
            "decay_factor": 0.1,
            "warmup": "constant",  # the official ATSS files say so, not linear
            "warmup_steps": 500,
            "warmup_factor": 1 / 3,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "bias_lr_factor": 2.0,  # official solver
            "bias_weight_decay": 0.0,
            "clip_norm": 0.0,
            "accumulate": 1,
            "ema_decay": 0.0,
        }
    )


def evaluation() -> ConfigDict:
    """Official post-processing."""
    return ConfigDict(
        {
            "batch_size": 16,
            "score_threshold": 0.05,
            "pre_nms_top_k": 1000,
            "nms_iou": 0.6,
            "max_detections": 100,
            "score": "sqrt",  # sqrt(class x centerness)
            "multiscale": "none",
            "backend": "pycocotools",
            "format_only": False,
            "num_pictures": 8,
        }
    )


def run() -> ConfigDict:
    """Loop, checkpoints and processes."""
    return ConfigDict(
        {
            "seed": 0,
            "log_every": 50,
            "checkpoint_every": 1000,
            "async_checkpoints": False,
            "eval_every": 10_000,
            "keep_last": 2,
            "keep_best": 1,
            "keep_every": 0,
            "max_bad_steps": 10,
            "distributed": "none",
            "coordinator": "",
            "num_processes": 1,
            "process_id": 0,
            "init_timeout": 300,
            "fsdp": False,
            "compilation_cache": "",
            "profile_steps": (),
            "wandb": "",
        }
    )
