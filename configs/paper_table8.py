r"""The final models: Table 8 of the paper (arXiv 1912.02424) and the official model zoo.

Not run by this project. AP on COCO test-dev of the paper, and on val2017 of the official
repository; "2x" and multi-scale training but for ResNet-50:

    argument                                                      test-dev  val2017
    backbone=r50,schedule=1x,multiscale=false                        39.3     39.3
    backbone=r50,dcn,schedule=1x,multiscale=false                    43.0     43.2
    backbone=r101                                                    43.6     43.5
    backbone=x101_32x8d                                              45.1     44.8
    backbone=x101_64x4d                                              45.6     45.5
    backbone=r101,dcn                                                46.3     46.1
    backbone=x101_32x8d,dcn                                          47.7     47.7
    backbone=x101_64x4d,dcn                                          47.7     47.7
    backbone=x101_32x8d,dcn  tested with eval.multiscale=paper       50.6      -
    backbone=x101_64x4d,dcn  tested with eval.multiscale=paper       50.7      -

    python -m atss_jax.main --config=configs/paper_table8.py:backbone=r101,dcn \
      --workdir=workdirs/r101_dcn
    python -m atss_jax.main --workdir=workdirs/r101_dcn --mode=eval \
      --config.eval.multiscale=paper

For test-dev add `--config.eval.format_only=True` and give `data.val_annotations` and
`data.val_images` of the test images, then send in the zip in the evaluation's folder. The official
runs have 16 images per step on 8 GPUs; the learning rate follows another global batch.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.run.recipe import Recipe

ARGUMENTS: dict[str, Any] = {
    "backbone": "r101",
    "dcn": False,
    "schedule": "2x",
    "multiscale": True,
}
"""Every argument with its default; `multiscale` is that of training."""


class Backbone(NamedTuple):
    """What goes with a backbone in the official configurations."""

    name: Literal["resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"]
    flavour: Literal["torchvision", "msra"]
    weights: str
    """File under data/weights, made by scripts/convert_weights.py."""
    dcn_stages: tuple[Literal[3, 4, 5], ...]


BACKBONES = {
    "r50": Backbone("resnet50", "msra", "R-50", (3, 4, 5)),
    "r101": Backbone("resnet101", "msra", "R-101", (3, 4, 5)),
    # the stride of ResNeXt is in its 3x3; the pixels are normalised as for the others
    "x101_32x8d": Backbone("resnext101_32x8d", "torchvision", "X-101-32x8d", (4, 5)),
    "x101_64x4d": Backbone("resnext101_64x4d", "torchvision", "X-101-64x4d", (4, 5)),
}

SCHEDULES = {"1x": 90_000, "2x": 180_000}
"""Steps; both decay at 6/9 and 8/9, the paper's 120k and 160k of 180k."""

SHORT_SIDES = tuple(range(640, 801))
"""Multi-scale training: every integer of the official range."""


def recipe(arg: str = "") -> Recipe:
    """The recipe of one row.

    Args:
      arg: "name=value,..." with backbone (r50, r101, x101_32x8d, x101_64x4d), dcn (deformable
        convolutions in backbone and head), schedule (1x, 2x), multiscale (short sides of 640 to
        800 px in training).

    Raises:
      ValueError: unknown names or values.
    """
    values = common.parse_arg(arg, **ARGUMENTS)
    base = atss_r50_fpn_1x.recipe()
    backbone = common.choose("backbone", values["backbone"], BACKBONES)
    num_steps = common.choose("schedule", values["schedule"], SCHEDULES)
    return replace(
        base,
        model=replace(
            base.model,
            backbone=backbone.name,
            flavour=backbone.flavour,
            init_from=f"data/weights/{backbone.weights}.safetensors",
            dcn_stages=backbone.dcn_stages if values["dcn"] else (),
            head_dcn=values["dcn"],
        ),
        optim=replace(base.optim, num_steps=num_steps),
        # 800 is the largest: the buckets of the base recipe hold every draw
        data=replace(base.data, train_short_sides=SHORT_SIDES if values["multiscale"] else ()),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
