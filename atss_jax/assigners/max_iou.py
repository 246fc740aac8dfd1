"""RetinaNet's assigner: positives by IoU thresholds, with at least one anchor for each object."""

import jax.numpy as jnp

from atss_jax.anchors import AnchorGrid
from atss_jax.boxes import at_least_float32, pairwise_iou, points_to_ltrb
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import Array, Int


def assign_max_iou(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    gt: GroundTruth,
    *,
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
    positives_in_box: bool = False,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns anchors by their best IoU (RetinaNet Sec. 4; ATSS Sec. 3); one image.

    An anchor belongs to the object it overlaps most (the lowest index among equals): positive from
    `foreground_iou` on, negative below `background_iou`, ignored between. Besides, all anchors
    whose IoU with some object is that object's highest become positive, for their own best object
    ("low-quality matches").

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      foreground_iou: lowest IoU of a positive.
      background_iou: IoU from which an anchor is no negative.
      positives_in_box: positives whose centre is outside their object become ignored (the ATSS
        paper's "in GT box" improvement of RetinaNet).
      in_box_margin: for `positives_in_box`, px.
    """
    boxes = at_least_float32(gt.boxes)
    own = grid.own_mask(image_size)
    iou = pairwise_iou(jnp.array(grid.boxes(), boxes.dtype), boxes)
    iou = jnp.where(own[:, None] & gt.is_valid, iou, -1)  # [A, G]
    best = jnp.max(iou, axis=1, initial=-1)
    gt_index = jnp.argmax(iou, axis=1).astype(jnp.int32)
    highest = jnp.max(iou, axis=0)
    is_low_quality = jnp.any((iou == highest) & (iou > 0), axis=1)
    is_positive = (best >= foreground_iou) | is_low_quality
    is_ignored = (best >= background_iou) & ~is_positive
    if positives_in_box:
        centers = jnp.array(grid.centers(), boxes.dtype)
        ltrb = points_to_ltrb(centers, boxes[gt_index])
        is_outside = jnp.min(ltrb, axis=1) <= in_box_margin
        is_ignored = is_ignored | (is_positive & is_outside)
        is_positive = is_positive & ~is_outside
    return Assignment(gt_index, is_positive, is_ignored | ~own)
