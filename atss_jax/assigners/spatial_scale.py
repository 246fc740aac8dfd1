"""FCOS: positives are the anchor points inside an object whose size fits the level."""

import jax.numpy as jnp

from atss_jax.anchors import AnchorGrid
from atss_jax.boxes import at_least_float32, box_area
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import Array, Int

SCALE_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
"""Per level, the allowed largest distance px from a point to an edge of its object (FCOS)."""


def assign_spatial_scale(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    gt: GroundTruth,
    *,
    center_radius: float = 0.0,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns points by FCOS's spatial and scale constraints (ATSS Sec. 3.2; FCOS Sec. 3.2).

    A point is positive for an object when it lies inside, when the largest of its distances to the
    four edges is in the range of its level (both ends included), and, with `center_radius` > 0,
    when it lies closer than that many strides to the object's centre along x and y. A point of
    several objects goes to the one of the smallest area, to the lowest index among equals.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      center_radius: of center sampling, in strides; 0 for none. FCOS and "ATSS lite" use 1.5.
      in_box_margin: a positive's centre is inside its box by more than this, px.
    """
    boxes = at_least_float32(gt.boxes)
    centers = jnp.array(grid.centers(), boxes.dtype)  # [A, 2]
    strides = jnp.array(grid.anchor_strides(), boxes.dtype)[:, None]  # [A, 1]
    ranges = jnp.repeat(
        jnp.array(SCALE_RANGES, boxes.dtype),
        jnp.array(grid.num_per_level),
        axis=0,
        total_repeat_length=grid.num_anchors,
    )
    x1, y1, x2, y2 = (boxes[None, :, i] for i in range(4))  # [1, G]
    x, y = centers[:, :1], centers[:, 1:]
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y  # [A, G]
    nearest = jnp.minimum(jnp.minimum(left, right), jnp.minimum(top, bottom))
    farthest = jnp.maximum(jnp.maximum(left, right), jnp.maximum(top, bottom))
    own = grid.own_mask(image_size)
    fits = (nearest > in_box_margin) & gt.is_valid & own[:, None]
    fits = fits & (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    if center_radius > 0:
        reach = center_radius * strides
        fits = fits & (jnp.abs(x - (x1 + x2) / 2) < reach) & (jnp.abs(y - (y1 + y2) / 2) < reach)
    area = jnp.where(fits, box_area(boxes), jnp.inf)
    gt_index = jnp.argmin(area, axis=1).astype(jnp.int32)
    return Assignment(gt_index, jnp.any(fits, axis=1), ~own)
