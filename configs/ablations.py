r"""The paper's ablations: Tables 1 to 7 (arXiv 1912.02424), each row an argument of this recipe.

Not run by this project. The paper's AP on COCO val2017 ("minival"), ResNet-50-FPN, 1x:

    Table 1  RetinaNet with one anchor, step by step towards FCOS        32.5 .. 37.0
    Table 2  assigner (iou, spatial_scale) x regression (box, point)     36.9 .. 37.8
    Table 3  center_sampling ("ATSS lite") and atss, both regressions    38.6, 39.3, 39.2
    Table 4  k = 3 .. 19                                                 38.0 .. 39.3
    Table 5  anchor_scale = 5 .. 9                                       38.9 .. 39.3
    Table 6  aspect_ratio                                                about equal
    Table 7  num_scales x num_ratios                                     38.4 .. 39.3

`python scripts/paper_rows.py list` prints the command of every row. One of them, Table 4, k = 15:

    python -m atss_jax.main --config=configs/ablations.py:k=15 --workdir=workdirs/k15

The defaults are `configs/atss_r50_fpn_1x.py`. Where the paper is silent, a row differs from the
full recipe in what its table names and in nothing else: P6 from P5, NMS at 0.6, the same schedule.
A head without centerness has RetinaNet's loss normalisers and scores; the box loss weight is 1 for
smooth-L1 (RetinaNet), 2 for GIoU (ATSS).
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from atss_jax.configs import atss_r50_fpn_1x, common
from atss_jax.errors import UserError
from atss_jax.run.recipe import Recipe

ARGUMENTS: dict[str, Any] = {
    "head_norm": "group_norm",
    "box_loss": "giou",
    "positives_in_box": True,
    "centerness": True,
    "level_scale": True,
    "assigner": "atss",
    "regression": "box",
    "k": 9,
    "anchor_scale": 8.0,
    "aspect_ratio": 1.0,
    "num_scales": 1,
    "num_ratios": 1,
}
"""Every argument with its default."""

ASSIGNERS = {
    "iou": ("max_iou", 0.0),
    "spatial_scale": ("spatial_scale", 0.0),
    "center_sampling": ("spatial_scale", 1.5),  # radius in strides, official FCOS
    "atss": ("atss", 0.0),
}
"""Argument -> (assigner, centre sampling radius)."""

RATIOS = {"1": (1.0,), "3": (0.5, 1.0, 2.0)}
"""Height / width, RetinaNet Sec. 4."""

BOX_LOSS_WEIGHTS = {"smooth_l1": 1.0, "giou": 2.0}


def recipe(arg: str = "") -> Recipe:
    """The recipe of one row.

    Args:
      arg: "name=value,..." with
        head_norm: group_norm, none;
        box_loss: giou, smooth_l1;
        positives_in_box: true, false (false with assigner=iou only);
        centerness, level_scale: true, false;
        assigner: iou, spatial_scale, center_sampling, atss;
        regression: box, point (with one anchor a location);
        k: candidates per level of assigner=atss;
        anchor_scale: side of the square anchor in strides;
        aspect_ratio: height / width of the only anchor;
        num_scales: anchor scales an octave, num_ratios: 1 or 3. RetinaNet's nine anchors are
        num_scales=3,num_ratios=3,anchor_scale=4.

    Raises:
      ValueError: unknown names or values, or values that do not go together.
    """
    values = common.parse_arg(arg, **ARGUMENTS)
    _check_together(values)
    base = atss_r50_fpn_1x.recipe()
    name, radius = common.choose("assigner", values["assigner"], ASSIGNERS)
    ratios = common.choose("num_ratios", str(values["num_ratios"]), RATIOS)
    box_loss_weight = common.choose("box_loss", values["box_loss"], BOX_LOSS_WEIGHTS)
    made = replace(
        base,
        assigner=replace(
            base.assigner,
            name=name,
            center_radius=radius,
            candidates_per_level=values["k"],
            positives_in_box=values["positives_in_box"],
        ),
        anchors=replace(
            base.anchors,
            aspect_ratios=ratios if len(ratios) > 1 else (values["aspect_ratio"],),
            anchor_scale=values["anchor_scale"],
            scales_per_octave=values["num_scales"],
        ),
        model=replace(
            base.model,
            head_norm=values["head_norm"],
            level_scale=values["level_scale"],
            regression=values["regression"],
        ),
        loss=replace(base.loss, box_loss=values["box_loss"], box_loss_weight=box_loss_weight),
    )
    if values["centerness"]:
        return made
    return replace(
        made,
        model=replace(made.model, centerness="none"),
        loss=replace(made.loss, normalizer="retinanet"),
        eval=replace(made.eval, score="cls"),
    )


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))


def _check_together(values: dict[str, Any]) -> None:
    """Raises where an argument would have no effect, or none that can be built."""
    if not values["positives_in_box"] and values["assigner"] != "iou":
        raise UserError(
            f"config argument positives_in_box=false: assigner={values['assigner']} always keeps "
            "positives inside their object. Use assigner=iou, or leave it out."
        )
    if values["k"] != ARGUMENTS["k"] and values["assigner"] != "atss":
        raise UserError(
            f"config argument k={values['k']}: assigner={values['assigner']} does not read it. "
            "Use assigner=atss, or leave it out."
        )
    if values["k"] < 1 or values["num_scales"] < 1:
        raise UserError(
            f"config arguments k={values['k']}, num_scales={values['num_scales']}: use 1 or more."
        )
    if min(values["anchor_scale"], values["aspect_ratio"]) <= 0:
        raise UserError(
            f"config arguments anchor_scale={values['anchor_scale']}, "
            f"aspect_ratio={values['aspect_ratio']}: use positive numbers."
        )
    if values["num_ratios"] != 1 and values["aspect_ratio"] != 1:
        raise UserError(
            f"config argument aspect_ratio={values['aspect_ratio']}: it is the ratio of the only "
            f"anchor, but num_ratios={values['num_ratios']}. Give one of the two."
        )
    if values["regression"] == "point" and values["num_scales"] * values["num_ratios"] != 1:
        raise UserError(
            f"config argument regression=point with num_scales={values['num_scales']}, "
            f"num_ratios={values['num_ratios']}: a point has one box. Use 1 and 1, or "
            "regression=box."
        )
