"""FCOS: positives are the anchor points inside an object whose size fits the level.

The points that fit an object on one level lie in a small rectangle of known largest size (10 x 10
cells, 4 x 4 with centre sampling), so only those are looked at.
"""

import math

import jax.numpy as jnp

from atss_jax.assigners.conflicts import first_wins
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, box_area
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import AnyArray, Array, Int

SCALE_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
"""Per level, the allowed largest distance px from a point to an edge of its object (FCOS)."""


def assign_spatial_scale(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    *,
    center_radius: float = 0.0,
    scale_ranges: tuple[tuple[float, float], ...] = SCALE_RANGES,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns points by FCOS's spatial and scale constraints (ATSS Sec. 3.2; FCOS Sec. 3.2).

    A point is positive for an object when it lies inside, when the largest of its distances to the
    four edges is in the range of its level (both ends included), and, with `center_radius` > 0,
    when it lies closer than that many strides to the object's centre along x and along y. A point
    of several objects goes to the one of the smallest area, to the lowest index among equals.

    Args:
      grid: the anchors (static); all anchors of a location are assigned alike.
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      center_radius: of center sampling, in strides; 0 for none. FCOS and "ATSS lite" use 1.5.
      scale_ranges: for each level, the smallest and largest distance px.
      in_box_margin: a positive's centre is inside its box by more than this, px.

    Raises:
      ValueError: not one range for each level.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> assignment = assign_spatial_scale(AnchorGrid((96, 128)), jnp.array([96, 128]), gt)
    >>> int(assignment.is_positive.sum())
    50
    """
    if len(scale_ranges) != grid.num_levels:
        raise ValueError(
            f"scale_ranges={scale_ranges}: give {grid.num_levels}, one for each level."
        )
    boxes = at_least_float32(jnp.asarray(gt.boxes))
    boxes = jnp.where(gt.is_valid[:, None], boxes, 0)
    own = grid.own_level_shapes(jnp.asarray(image_size))
    indices, claims = [], []
    num_before = 0  # locations of finer levels
    for level, (lowest, highest) in enumerate(scale_ranges):
        axes = [
            _axis(grid, level, axis, boxes, own[level, axis], highest, center_radius, in_box_margin)
            for axis in (0, 1)
        ]
        (row, fits_y, far_y), (column, fits_x, far_x) = axes  # [n, G] each
        fits = fits_y[:, None] & fits_x[None] & gt.is_valid
        fits = fits & (jnp.maximum(far_y[:, None], far_x[None]) >= lowest)
        height, width = grid.level_shapes[level]
        index = num_before + row[:, None] * width + column[None]
        indices.append(index.reshape(-1, boxes.shape[0]))
        claims.append(fits.reshape(-1, boxes.shape[0]))
        num_before += height * width
    order = jnp.argsort(box_area(boxes), stable=True).astype(jnp.int32)
    place = jnp.argsort(order).astype(jnp.int32)
    winner, is_positive = first_wins(
        jnp.concatenate(indices), place, jnp.concatenate(claims), num_before
    )
    gt_index = jnp.where(is_positive, order[winner], 0)
    return Assignment(
        jnp.repeat(gt_index, grid.num_per_location),
        jnp.repeat(is_positive, grid.num_per_location),
        ~grid.own_mask(jnp.asarray(image_size)),
    )


def _axis(
    grid: AnchorGrid,
    level: int,
    axis: int,
    boxes: Array,
    own_count: Array,
    highest: float,
    center_radius: float,
    margin: float,
) -> tuple[Array, Array, Array]:
    """Rows (axis 0) or columns (1) of a level that may hold an object's points, in n slots.

    Along one axis they lie between the edges, at most `highest` px from both: in an interval of at
    most `highest` px, and of 2 * `center_radius` strides.

    Returns:
      Index [n, G], whether it fits [n, G], and the distance px to the farther edge [n, G].
    """
    stride, count = grid.strides[level], grid.level_shapes[level][axis]
    low, high = boxes[:, 1 - axis], boxes[:, 3 - axis]
    start, length = jnp.maximum(low, high - highest), highest / stride
    center = (low + high) / 2
    if center_radius > 0:
        start, length = jnp.maximum(start, center - center_radius * stride), 2 * center_radius
    num_slots = min(math.floor(length) + 2, count)  # one more than fit: the start is rounded down
    first = jnp.floor((start - grid.offset_px) / stride - grid.center_offset)
    first = jnp.clip(first, 0, count - num_slots).astype(jnp.int32)
    index = first + jnp.arange(num_slots, dtype=jnp.int32)[:, None]  # [n, G]
    point = (index.astype(boxes.dtype) + grid.center_offset) * stride + grid.offset_px
    before, after = point - low, high - point
    far = jnp.maximum(before, after)
    fits = (index < own_count) & (jnp.minimum(before, after) > margin) & (far <= highest)
    if center_radius > 0:
        fits = fits & (jnp.abs(point - center) < center_radius * stride)
    return index, fits, far
