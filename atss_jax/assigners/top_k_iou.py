"""The k anchors of the highest IoU over all levels together (the official code's "TOPK")."""

import jax.numpy as jnp
from jax import lax

from atss_jax.assigners.conflicts import highest_iou_wins
from atss_jax.assigners.windows import (
    location_centers,
    location_index,
    location_ious,
    nearest_edge,
    window_locations,
)
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, box_centers
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import AnyArray, Array, Float, Int

DISTANCE_WEIGHT = 1e-3
"""Of the relative distance against the IoU, to order anchors of equal IoU (official code)."""


def assign_top_k_iou(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    *,
    candidates: int = 9,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Positives are the best anchors of each object over all levels; one image.

    Best by IoU - d / d_max / 1000, where d is the distance of the centres and d_max the largest
    distance between any object and any anchor of the image. Both fall along x and along y, so the
    locations of `windows` hold the best. A positive's centre is inside the object; conflicts go to
    the highest IoU.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      candidates: anchors for each object, over all levels, at least 1.
      in_box_margin: a positive's centre is inside its box by more than this, px.

    Raises:
      ValueError: `candidates` below 1.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> assignment = assign_top_k_iou(AnchorGrid((96, 128)), jnp.array([96, 128]), gt, candidates=5)
    >>> int(assignment.is_positive.sum())
    5
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: give at least 1.")
    boxes = at_least_float32(jnp.asarray(gt.boxes))
    boxes = jnp.where(gt.is_valid[:, None], boxes, 0)
    locations = window_locations(grid, image_size, boxes, candidates)
    x, y = location_centers(grid, locations, boxes.dtype)
    iou = location_ious(grid, x, y, boxes)  # [L, S, a, G]
    center = box_centers(boxes).T
    distance = jnp.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2)
    farthest = jnp.max(_farthest(grid, image_size, boxes), where=gt.is_valid, initial=1)
    score = iou - (DISTANCE_WEIGHT * distance / farthest)[:, :, None]
    score = jnp.where(locations.exists[:, :, None], score, -jnp.inf)

    index = location_index(grid, locations)[:, :, None]
    index = index + jnp.arange(grid.num_per_location, dtype=jnp.int32)[:, None]
    is_in_box = nearest_edge(x, y, boxes)[:, :, None] > in_box_margin

    def flat(slots: Array) -> Array:
        return jnp.broadcast_to(slots, iou.shape).reshape(-1, iou.shape[-1]).T  # [G, N]

    best_score, slot = lax.top_k(flat(score), min(candidates, score[..., 0].size))
    index, iou, is_in_box = (
        jnp.take_along_axis(flat(values), slot, axis=1).T for values in (index, iou, is_in_box)
    )
    is_claim = jnp.isfinite(best_score.T) & is_in_box & gt.is_valid
    gt_index, is_positive = highest_iou_wins(index, iou, is_claim, grid.num_anchors)
    return Assignment(gt_index, is_positive, ~grid.own_mask(jnp.asarray(image_size)))


def _farthest(
    grid: AnchorGrid, image_size: Int[AnyArray, "2"], boxes: Float[Array, "G 4"]
) -> Float[Array, " G"]:
    """Distance px from each box's centre to the farthest anchor centre of the image."""
    own = grid.own_level_shapes(jnp.asarray(image_size))[:, ::-1]  # (w, h) [L, 2]
    strides = jnp.array(grid.strides, boxes.dtype)[:, None]
    first = grid.center_offset * strides + grid.offset_px  # [L, 1]
    last = (own - 1 + grid.center_offset) * strides + grid.offset_px  # [L, 2]
    centers = box_centers(boxes)[:, None]  # [G, 1, 2]
    reach = jnp.maximum(jnp.abs(centers - first), jnp.abs(centers - last))  # [G, L, 2]
    return jnp.max(jnp.sqrt(jnp.sum(reach**2, axis=-1)), axis=1)
