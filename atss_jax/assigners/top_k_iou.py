"""The k anchors of the highest IoU over all levels together (the official code's "TOPK")."""

import jax.numpy as jnp
from jax import lax

from atss_jax.anchors import AnchorGrid
from atss_jax.assigners.conflicts import highest_iou_wins
from atss_jax.assigners.windows import (
    location_index,
    slot_centers,
    slot_ious,
    slots_in_box,
    window_around,
)
from atss_jax.boxes import at_least_float32, box_centers
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import Array, Float, Int

DISTANCE_WEIGHT = 1e-3
"""Of the relative distance against the IoU, to order anchors of equal IoU (official code)."""


def assign_top_k_iou(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    gt: GroundTruth,
    *,
    candidates: int = 9,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Positives are the best anchors of each object over all levels; one image.

    Best by IoU - d / d_max / 1000, where d is the distance of the centres and d_max the largest
    distance between any object and any anchor of the image. Both fall along x and along y, so the
    window of `windows` holds the best. A positive's centre must be inside the object; conflicts go
    to the highest IoU.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      candidates: anchors for each object, over all levels, at least 1.
      in_box_margin: a positive's centre is inside its box by more than this, px.

    Raises:
      ValueError: `candidates` below 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: at least 1.")
    boxes = at_least_float32(jnp.where(gt.is_valid[:, None], gt.boxes, 0))
    window = window_around(grid, image_size, boxes, candidates)
    centers = slot_centers(grid, window)
    iou = slot_ious(grid, centers, boxes)  # [G, L, S, a]
    strides = jnp.array(grid.strides, boxes.dtype)[:, None]
    distance = jnp.sqrt(window.distance2) * strides
    far = jnp.max(jnp.where(gt.is_valid, _farthest(grid, image_size, boxes), 0))
    score = iou - (DISTANCE_WEIGHT * distance / jnp.maximum(far, 1))[..., None]
    score = jnp.where(window.exists[..., None], score, -jnp.inf)

    num_objects = boxes.shape[0]
    index = location_index(grid, window)[..., None]
    index = index + jnp.arange(grid.num_per_location, dtype=jnp.int32)
    in_box = slots_in_box(centers, boxes, in_box_margin)[..., None]
    flat = lambda x: jnp.broadcast_to(x, iou.shape).reshape(num_objects, -1)  # noqa: E731
    best_score, slot = lax.top_k(flat(score), min(candidates, flat(score).shape[1]))
    take = lambda x: jnp.take_along_axis(flat(x), slot, axis=1)  # noqa: E731
    is_positive = (best_score > -jnp.inf) & take(in_box) & gt.is_valid[:, None]
    gt_index, is_taken = highest_iou_wins(take(index), take(iou), is_positive, grid.num_anchors)
    return Assignment(gt_index, is_taken, ~grid.own_mask(image_size))


def _farthest(
    grid: AnchorGrid, image_size: Int[Array, "2"], boxes: Float[Array, "G 4"]
) -> Float[Array, " G"]:
    """Distance px from each box's centre to the farthest anchor centre of the image."""
    own = grid.own_level_shapes(image_size)[:, ::-1]  # (w, h) [L, 2]
    strides = jnp.array(grid.strides, boxes.dtype)[:, None]
    first = grid.center_offset * strides + grid.offset_px  # [L, 1]
    last = (own - 1 + grid.center_offset) * strides + grid.offset_px  # [L, 2]
    centers = box_centers(boxes)[:, None]  # [G, 1, 2]
    reach = jnp.maximum(jnp.abs(centers - first), jnp.abs(centers - last))  # [G, L, 2]
    return jnp.max(jnp.sqrt(jnp.sum(reach**2, axis=-1)), axis=1)
