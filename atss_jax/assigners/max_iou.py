"""RetinaNet's assigner: positives by IoU thresholds, with at least one anchor for each object."""

import jax.numpy as jnp
from jax import lax

from atss_jax.assigners.windows import nearest_edge
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import AnyArray, Array, Int

TIE_TOLERANCE = 1e-6
"""Relative difference up to which two IoUs count as equal: they are so up to rounding."""


def assign_max_iou(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    *,
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    positives_in_box: bool = False,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns anchors by their best IoU (RetinaNet Sec. 4; ATSS Sec. 3); one image.

    An anchor belongs to the object it overlaps most (the lowest index among equals): positive from
    `foreground_iou` on, negative below `background_iou`, ignored between. Besides, every anchor
    whose IoU with some object is that object's highest is positive, for its own best object
    ("low-quality matches"); an object that overlaps no anchor has none.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      foreground_iou: lowest IoU of a positive.
      background_iou: IoU from which an anchor is no negative.
      positives_in_box: positives whose centre is outside their object become ignored (the ATSS
        paper's "in GT box" improvement of RetinaNet).
      in_box_margin: for `positives_in_box`, px.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> assignment = assign_max_iou(AnchorGrid((96, 128)), jnp.array([96, 128]), gt)
    >>> int(assignment.is_positive.sum()), int(assignment.is_ignored.sum())
    (16, 14)
    """
    boxes = at_least_float32(jnp.asarray(gt.boxes))
    boxes = jnp.where(gt.is_valid[:, None], boxes, 0)
    x1, y1, x2, y2 = jnp.array(grid.boxes(), boxes.dtype).T
    area = (x2 - x1) * (y2 - y1)
    own = grid.own_mask(jnp.asarray(image_size))

    # One object at a time: the whole matrix of IoUs would not fit into caches.
    def compare(
        carry: tuple[Array, Array, Array], inputs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        best, gt_index, is_top = carry
        box, index = inputs
        width = jnp.minimum(x2, box[2]) - jnp.maximum(x1, box[0])
        height = jnp.minimum(y2, box[3]) - jnp.maximum(y1, box[1])
        shared = jnp.where(own, jnp.maximum(width, 0) * jnp.maximum(height, 0), 0)
        iou = shared / (area + (box[2] - box[0]) * (box[3] - box[1]) - shared)  # [A]
        top = jnp.max(iou) * (1 - TIE_TOLERANCE)
        is_top = is_top | ((iou >= top) & (iou > 0))
        is_better = iou > best
        return (
            jnp.where(is_better, iou, best),
            jnp.where(is_better, index, gt_index),
            is_top,
        ), None

    # Padding, as an empty box, has IoU 0 with everything: it is nobody's best.
    # The carry starts from `own`, so that under `shard_map` it is as sharded as the images.
    start = (own.astype(boxes.dtype) * 0, own.astype(jnp.int32) * 0, own & False)
    indices = jnp.arange(boxes.shape[0], dtype=jnp.int32)
    (best, gt_index, is_top), _ = lax.scan(compare, start, (boxes, indices))
    is_positive = (best >= foreground_iou) | is_top
    is_ignored = (best >= background_iou) & ~is_positive
    if positives_in_box:
        x, y = jnp.array(grid.centers(), boxes.dtype).T
        is_outside = nearest_edge(x, y, boxes[gt_index]) <= in_box_margin
        is_ignored = is_ignored | (is_positive & is_outside)
        is_positive = is_positive & ~is_outside
    return Assignment(gt_index, is_positive, is_ignored | ~own)
