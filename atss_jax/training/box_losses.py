"""Losses of predicted boxes by name, not reduced: a table of functions of one signature."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from atss_jax.geometry import boxes as box_ops
from atss_jax.typing import Array, Float

SMOOTH_L1_BETA = 0.11
"""Where smooth-L1 turns from quadratic to linear (official RetinaNet configs)."""


def smooth_l1(difference: Float[Array, "*N"], *, beta: float) -> Float[Array, "*N"]:
    """0.5 d^2 / beta up to |d| = beta, |d| - beta / 2 beyond; not reduced."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * jnp.square(size) / beta, size - 0.5 * beta)


def fcos_iou_loss(
    predicted: Float[Array, "*N 4"], target: Float[Array, "*N 4"], *, kind: str
) -> Float[Array, "*N"]:
    """FCOS' box loss of distances (l, t, r, b), paired, not reduced.

    FCOS adds 1 to intersection and union, so the value depends on the unit of the distances.

    Args:
      predicted: not negative.
      target: not negative.
      kind: "iou" for -ln IoU (UnitBox, Yu et al. 2016), "giou" for 1 - GIoU.
    """
    zero = jnp.zeros_like(predicted[..., :2])
    predicted_boxes = box_ops.ltrb_to_boxes(zero, box_ops.at_least_float32(predicted))
    target_boxes = box_ops.ltrb_to_boxes(zero, box_ops.at_least_float32(target))
    intersection = box_ops.paired_intersection(predicted_boxes, target_boxes)
    areas = box_ops.box_area(predicted_boxes) + box_ops.box_area(target_boxes)
    union = areas - intersection
    iou = (intersection + 1) / (union + 1)
    if kind == "iou":
        return -jnp.log(iou)
    hull_sides = jnp.maximum(predicted, target)
    hull = (hull_sides[..., 0] + hull_sides[..., 2]) * (hull_sides[..., 1] + hull_sides[..., 3])
    hull = jnp.maximum(hull, box_ops.IOU_EPSILON)  # two empty boxes
    return 1 - (iou - (hull - union) / hull)


class Regression(NamedTuple):
    """Box predictions of a batch beside what they should be."""

    values: Float[Array, "B A 4"]
    """Raw predictions, 0 where not positive."""
    goal: Float[Array, "B A 4"]
    """xyxy px."""
    anchors: Float[Array, "A 4"]
    points: Float[Array, "A 2"]
    strides: Float[Array, " A"]
    kind: str
    """"box" or "point"."""

    def decoded(self) -> Array:
        """The predicted boxes, xyxy px."""
        if self.kind == "box":
            return box_ops.decode_deltas(self.values, self.anchors)
        return box_ops.decode_points(self.values, self.points, self.strides)

    def encoded_goal(self) -> Array:
        """The values that would predict `goal`."""
        if self.kind == "box":
            return box_ops.encode_deltas(self.goal, self.anchors)
        return box_ops.encode_points(self.goal, self.points, self.strides)


def _giou_loss(r: Regression) -> Array:
    return 1 - box_ops.paired_giou(r.decoded(), r.goal)


def _diou_loss(r: Regression) -> Array:
    return 1 - box_ops.paired_diou(r.decoded(), r.goal)


def _ciou_loss(r: Regression) -> Array:
    return 1 - box_ops.paired_ciou(r.decoded(), r.goal)


def _iou_loss(r: Regression) -> Array:
    if r.kind == "point":
        unit = r.strides[:, None]  # distances in px
        return fcos_iou_loss(r.values * unit, r.encoded_goal() * unit, kind="iou")
    decoded = r.decoded()
    intersection = box_ops.paired_intersection(decoded, r.goal)
    union = box_ops.box_area(decoded) + box_ops.box_area(r.goal) - intersection
    return -jnp.log((intersection + 1) / (union + 1))


def _fcos_giou_loss(r: Regression) -> Array:
    return fcos_iou_loss(r.values, r.encoded_goal(), kind="giou")


def _smooth_l1_loss(r: Regression) -> Array:
    return jnp.mean(smooth_l1(r.values - r.encoded_goal(), beta=SMOOTH_L1_BETA), axis=-1)


BOX_LOSSES: dict[str, Callable[[Regression], Array]] = {
    "giou": _giou_loss,
    "diou": _diou_loss,
    "ciou": _ciou_loss,
    "iou": _iou_loss,
    "fcos_giou": _fcos_giou_loss,
    "smooth_l1": _smooth_l1_loss,
}
"""Name -> loss of every anchor [B, A], before masking.

"giou", "diou" and "ciou" are 1 - that of boxes in px; "iou" is -ln((I + 1) / (U + 1)) in px (FCOS
as first published); "fcos_giou" is FCOS' own GIoU of distances in strides; "smooth_l1" is the mean
over the four encoded coordinates.
"""
