r"""FCOS with ResNet-50-FPN, 1x schedule, as first published and with its improvements.

Paper: Sec. 3.2 and Table 1 of ATSS (arXiv 1912.02424): AP 37.1 on COCO val2017 as published
(arXiv 1904.01355), 37.8 with `improved`: centerness on the box tower, GIoU loss, distances in
strides. Not run by this project. One difference: FCOS as published predicts exp(s x) px, here it is
exp(s x) strides; the starting point differs by the stride, what can be expressed does not.

    python -m atss_jax.main --config=configs/fcos_r50_fpn_1x.py --workdir=workdirs/fcos
    python -m atss_jax.main --config=configs/fcos_r50_fpn_1x.py:improved --workdir=workdirs/fcos2

Centre sampling is `configs/ablations.py:assigner=center_sampling,regression=point`.
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.run.recipe import Recipe

ARGUMENTS: dict[str, Any] = {"improved": False}
"""Every argument with its default."""


def recipe(arg: str = "") -> Recipe:
    """The recipe.

    Args:
      arg: "improved" for the three improvements.

    Raises:
      ValueError: unknown names or values.
    """
    improved = common.parse_arg(arg, **ARGUMENTS)["improved"]
    base = atss_r50_fpn_1x.recipe()
    return replace(
        base,
        assigner=replace(base.assigner, name="spatial_scale", center_radius=0.0),
        model=replace(
            base.model,
            regression="point",
            point_activation="relu" if improved else "exp",
            centerness="box" if improved else "cls",
        ),
        loss=replace(
            base.loss,
            box_loss="fcos_giou" if improved else "iou",
            box_loss_weight=1.0,  # FCOS weighs its three losses alike
        ),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
