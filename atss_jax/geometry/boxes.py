"""Box arithmetic: areas, overlaps, coders. Pure functions over xyxy boxes in continuous pixels.

Functions over two sets say whether they are *pairwise* (all pairs, `[N, M]`) or *paired* (row by
row). Everything is computed in at least float32. Nothing here knows anchor grids or networks.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from atss_jax.typing import Array, Float

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors on (dx, dy, dw, dh), as in Faster R-CNN and the official ATSS."""

MAX_LOG_SCALE = 4.135166556742356
"""ln(1000 / 16): a 16 px anchor grows to at most 1000 px when decoded."""

IOU_EPSILON = 1e-7
"""Added to the union and to the hull in losses, as in the official GIoU."""


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def box_sizes(boxes: Float[Array, "*N 4"]) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
    """(width, height) in px of xyxy boxes; negative where a box is inverted."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def box_centers(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N 2"]:
    """(x, y) centres in px of xyxy boxes."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Area in px^2 of xyxy boxes, 0 for inverted ones.

    >>> float(box_area(jnp.array([0.0, 0.0, 4.0, 3.0])))
    12.0
    """
    width, height = box_sizes(at_least_float32(boxes))
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def clip_boxes(
    boxes: Float[Array, "*N 4"], height: Float[Array, ""], width: Float[Array, ""]
) -> Float[Array, "*N 4"]:
    """Boxes limited to [0, width] x [0, height] px.

    Args:
      boxes: xyxy px.
      height: height of the image content, px.
      width: width of the image content, px.
    """
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits)


def paired_intersection(
    boxes1: Float[Array, "*#N 4"], boxes2: Float[Array, "*#N 4"]
) -> Float[Array, "*#N"]:
    """Area in px^2 that box i of one set shares with box i of the other (shapes broadcast)."""
    top_left = jnp.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = jnp.minimum(boxes1[..., 2:], boxes2[..., 2:])
    sides = jnp.maximum(bottom_right - top_left, 0)
    return sides[..., 0] * sides[..., 1]


def paired_iou(boxes1: Float[Array, "*#N 4"], boxes2: Float[Array, "*#N 4"]) -> Float[Array, "*#N"]:
    """IoU of box i with box i, in [0, 1]; 0 where the union is empty. Shapes broadcast.

    >>> a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 3.0, 2.0])
    >>> round(float(paired_iou(a, b)), 4)
    0.3333
    """
    boxes1, boxes2 = at_least_float32(boxes1), at_least_float32(boxes2)
    intersection = paired_intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def pairwise_iou(boxes1: Float[Array, "N 4"], boxes2: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """IoU of all pairs, in [0, 1]; 0 where the union is empty.

    Args:
      boxes1: xyxy px.
      boxes2: xyxy px.
    """
    return paired_iou(boxes1[:, None], boxes2[None])


def paired_giou(
    boxes1: Float[Array, "*#N 4"], boxes2: Float[Array, "*#N 4"], *, epsilon: float = IOU_EPSILON
) -> Float[Array, "*#N"]:
    """Generalised IoU of box i with box i, in [-1, 1]; differentiable, finite everywhere.

    IoU - (hull - union) / hull, with `epsilon` px^2 added to union and hull. Inverted boxes count
    as flat ones (their far edge is moved to the near one), as in the official code.

    Args:
      boxes1: xyxy px; shapes broadcast.
      boxes2: xyxy px.
      epsilon: px^2.

    References:
      Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    pair = _compare(boxes1, boxes2, epsilon)
    hull = pair.hull_sides[..., 0] * pair.hull_sides[..., 1] + epsilon
    return pair.intersection / pair.union - (hull - pair.union) / hull


def paired_diou(
    boxes1: Float[Array, "*#N 4"], boxes2: Float[Array, "*#N 4"], *, epsilon: float = IOU_EPSILON
) -> Float[Array, "*#N"]:
    """Distance IoU of box i with box i, in [-1, 1]; differentiable, finite everywhere.

    IoU - d^2 / c^2, where d is the distance of the centres and c the diagonal of the hull, with
    `epsilon` px^2 added to the union and to c^2. Inverted boxes count as flat ones.

    References:
      Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 7.
    """
    pair = _compare(boxes1, boxes2, epsilon)
    diagonal = jnp.sum(jnp.square(pair.hull_sides), axis=-1) + epsilon
    distance = jnp.sum(jnp.square(box_centers(pair.boxes2) - box_centers(pair.boxes1)), axis=-1)
    return pair.intersection / pair.union - distance / diagonal


def paired_ciou(
    boxes1: Float[Array, "*#N 4"], boxes2: Float[Array, "*#N 4"], *, epsilon: float = IOU_EPSILON
) -> Float[Array, "*#N"]:
    """Complete IoU of box i with box i, in [-1, 1]; differentiable, finite everywhere.

    DIoU - alpha v. v in [0, 1] compares the aspect ratios: 4 / pi^2 times the squared difference of
    atan(w / h). alpha = v / (1 - IoU + v) carries no gradient and is 0 up to IoU 0.5, so that the
    overlap comes first. `epsilon` as in `paired_diou`, and px added to heights. The value is
    limited to [-1, 1].

    References:
      Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 8-11; alpha below 0.5 as in Zheng et al.,
      Enhancing Geometric Factors, 2021.
    """
    pair = _compare(boxes1, boxes2, epsilon)
    iou = pair.intersection / pair.union
    width1, height1 = box_sizes(pair.boxes1)
    width2, height2 = box_sizes(pair.boxes2)
    angles = jnp.arctan(width2 / (height2 + epsilon)) - jnp.arctan(width1 / (height1 + epsilon))
    difference = 4 / jnp.pi**2 * jnp.square(angles)
    rest = 1 - iou + difference  # 0 in float32 for identical boxes
    alpha = jnp.where((iou > 0.5) & (rest > 0), difference / jnp.where(rest > 0, rest, 1), 0)
    diou = paired_diou(boxes1, boxes2, epsilon=epsilon)
    return jnp.clip(diou - lax.stop_gradient(alpha) * difference, -1, 1)


class _Pair(NamedTuple):
    """Two sets of boxes, row by row, as the losses compare them."""

    boxes1: Float[Array, "*#N 4"]
    """Inverted boxes made flat: their far edge is moved to the near one."""
    boxes2: Float[Array, "*#N 4"]
    intersection: Float[Array, "*#N"]
    union: Float[Array, "*#N"]
    """With epsilon added."""
    hull_sides: Float[Array, "*#N 2"]


def _compare(boxes1: Array, boxes2: Array, epsilon: float) -> _Pair:
    boxes1, boxes2 = at_least_float32(boxes1), at_least_float32(boxes2)
    boxes1 = jnp.concatenate(
        [boxes1[..., :2], jnp.maximum(boxes1[..., :2], boxes1[..., 2:])], axis=-1
    )
    intersection = paired_intersection(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - intersection + epsilon
    hull_sides = jnp.maximum(boxes1[..., 2:], boxes2[..., 2:]) - jnp.minimum(
        boxes1[..., :2], boxes2[..., :2]
    )
    return _Pair(boxes1, boxes2, intersection, union, hull_sides)


def points_to_ltrb(
    points: Float[Array, "*#N 2"], boxes: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """Distances (left, top, right, bottom) in px from points (x, y) to the edges of boxes.

    All four are positive exactly where the point is inside. Shapes broadcast.
    """
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def ltrb_to_boxes(
    points: Float[Array, "*#N 2"], ltrb: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """Inverse of `points_to_ltrb`."""
    return jnp.concatenate([points - ltrb[..., :2], points + ltrb[..., 2:]], axis=-1)


def centerness(points: Float[Array, "*#N 2"], boxes: Float[Array, "*#N 4"]) -> Float[Array, "*#N"]:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) in [0, 1]; 0 outside the box.

    1 at the centre of a box, 0 on its edges.

    Args:
      points: (x, y) px; shapes broadcast.
      boxes: xyxy px.

    References:
      Tian et al., FCOS, ICCV 2019, Sec. 3.2, eq. 3.
    """
    ltrb = at_least_float32(points_to_ltrb(points, boxes))
    inside = jnp.min(ltrb, axis=-1) > 0
    ltrb = jnp.where(inside[..., None], ltrb, 1)
    left, top, right, bottom = (ltrb[..., i] for i in range(4))
    horizontal = jnp.minimum(left, right) / jnp.maximum(left, right)
    vertical = jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    return jnp.where(inside, jnp.sqrt(horizontal * vertical), 0)


def encode_deltas(
    boxes: Float[Array, "*#N 4"], anchors: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """Boxes as weighted deltas (dx, dy, dw, dh) against anchors ("box" regression).

    (10 (gx - ax) / aw, 10 (gy - ay) / ah, 5 ln(gw / aw), 5 ln(gh / ah)). Inverse of
    `decode_deltas`. Boxes and anchors must have positive sides.
    """
    boxes, anchors = at_least_float32(boxes), at_least_float32(anchors)
    sides = jnp.stack(box_sizes(boxes), axis=-1)
    anchor_sides = jnp.stack(box_sizes(anchors), axis=-1)
    shift = (box_centers(boxes) - box_centers(anchors)) / anchor_sides
    scale = jnp.log(sides / anchor_sides)
    return jnp.concatenate([shift, scale], axis=-1) * jnp.array(DELTA_WEIGHTS, boxes.dtype)


def decode_deltas(
    deltas: Float[Array, "*#N 4"], anchors: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """xyxy boxes in px from weighted deltas against anchors.

    dw and dh are limited above (`MAX_LOG_SCALE`), not below, as in the official code.
    """
    deltas, anchors = at_least_float32(deltas), at_least_float32(anchors)
    deltas = deltas / jnp.array(DELTA_WEIGHTS, deltas.dtype)
    anchor_sides = jnp.stack(box_sizes(anchors), axis=-1)
    centers = box_centers(anchors) + deltas[..., :2] * anchor_sides
    half_sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_sides / 2
    return jnp.concatenate([centers - half_sides, centers + half_sides], axis=-1)


def encode_points(
    boxes: Float[Array, "*#N 4"], points: Float[Array, "*#N 2"], strides: Float[Array, "*#N"]
) -> Float[Array, "*#N 4"]:
    """Boxes as distances (l, t, r, b) from points, in strides ("point" regression)."""
    return at_least_float32(points_to_ltrb(points, boxes)) / strides[..., None]


def decode_points(
    ltrb: Float[Array, "*#N 4"], points: Float[Array, "*#N 2"], strides: Float[Array, "*#N"]
) -> Float[Array, "*#N 4"]:
    """xyxy boxes in px from distances in strides; inverse of `encode_points`."""
    return ltrb_to_boxes(points, at_least_float32(ltrb) * strides[..., None])
