"""The anchor locations near a box that can be among its k best, without looking at the others.

Centres lie on a regular grid, so "the r-th nearest row" and "the c-th nearest column" of a point
are known in closed form. A location (r, c), in such ranks, is no nearer than any location
(r', c') with r' <= r and c' <= c. There are (r + 1) (c + 1) of those, so only locations with

    (r + 1) (c + 1) <= k

can be among the k nearest. These are sum_r floor(k / (r + 1)) ~ k ln k slots (23 for k = 9),
whatever the grid: one row high, smaller than k, or with the point in a corner or outside. The same
holds for every score that falls with the distance along x and along y, such as the IoU with
anchors of one shape.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from atss_jax.anchors import AnchorGrid
from atss_jax.boxes import at_least_float32, box_centers
from atss_jax.typing import Array, Bool, Float, Int


class Window(NamedTuple):
    """Locations around each box, S slots a level; all fields have one entry per slot."""

    row: Int[Array, "G L S"]
    column: Int[Array, "G L S"]
    distance2: Float[Array, "G L S"]
    """Squared distance of location and box centre, in strides^2."""
    exists: Bool[Array, "G L S"]
    """False where the image's own grid has no such location."""


@functools.lru_cache
def slot_ranks(num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (r, c) of the slots with (r + 1) (c + 1) <= k, nearest first: two int32 [S].

    >>> [ranks.tolist() for ranks in slot_ranks(3)]
    [[0, 0, 1, 0, 2], [0, 1, 0, 2, 0]]
    """
    ranks = [(r, c) for r in range(num_nearest) for c in range(num_nearest // (r + 1))]
    ranks.sort(key=lambda rank: (rank[0] ** 2 + rank[1] ** 2, rank))
    row, column = np.array(ranks, np.int32).T
    return row, column


def nearest_integers(
    position: Float[Array, "*N"], count: Int[Array, "*#N"], rank: Int[np.ndarray, " S"]
) -> Int[Array, "*N S"]:
    """The integer of [0, count) that is the `rank`-th nearest to `position`; lower ones first.

    Left and right neighbours take turns until one side is used up; from there on it is the other
    side's. Meaningless where rank >= count.

    Args:
      position: any finite numbers, also outside [0, count).
      count: how many integers there are.
      rank: from 0.

    >>> nearest_integers(jnp.array(1.2), jnp.array(5), np.arange(5)).tolist()
    [1, 2, 0, 3, 4]
    """
    floor = jnp.floor(jnp.clip(position, -1, count))
    left = jnp.clip(floor.astype(jnp.int32) + 1, 0, count)  # integers <= position
    left_first = ((position - floor) <= 0.5).astype(jnp.int32)[..., None]
    right = (count - left)[..., None]
    left = left[..., None]
    num_pairs = jnp.minimum(left, right)
    is_paired = rank < 2 * num_pairs
    is_left = jnp.where(is_paired, (rank + left_first) % 2 == 1, left > right)
    depth = jnp.where(is_paired, rank // 2, rank - num_pairs)
    return jnp.where(is_left, left - 1 - depth, left + depth)


def window_around(
    grid: AnchorGrid, image_size: Int[Array, "2"], boxes: Float[Array, "G 4"], num_nearest: int
) -> Window:
    """On each level, a superset of the `num_nearest` locations nearest to each box's centre.

    Args:
      grid: the anchors.
      image_size: (h, w) of the content, px.
      boxes: xyxy px, finite.
      num_nearest: k.
    """
    own = grid.own_level_shapes(image_size).astype(jnp.int32)  # [L, 2]
    centers = box_centers(at_least_float32(boxes))[:, None]  # [G, 1, 2]
    strides = jnp.array(grid.strides, centers.dtype)[:, None]  # [L, 1]
    position = (centers - grid.offset_px) / strides - grid.center_offset  # [G, L, 2]
    row_rank, column_rank = slot_ranks(num_nearest)
    column = nearest_integers(position[..., 0], own[:, 1], column_rank)
    row = nearest_integers(position[..., 1], own[:, 0], row_rank)
    dx = column - position[..., 0, None]
    dy = row - position[..., 1, None]
    exists = (row_rank < own[:, :1]) & (column_rank < own[:, 1:])  # [L, S]
    return Window(row, column, dx * dx + dy * dy, jnp.broadcast_to(exists, row.shape))


def location_index(grid: AnchorGrid, window: Window) -> Int[Array, "G L S"]:
    """Index of the first anchor of every slot's location, over all levels."""
    widths = np.array([w for _, w in grid.level_shapes], np.int32)[:, None]
    starts = np.array(grid.level_starts, np.int32)[:, None]
    return starts + (window.row * widths + window.column) * grid.num_per_location


def slot_centers(grid: AnchorGrid, window: Window) -> Float[Array, "G L S 2"]:
    """(x, y) px of every slot's anchor centre."""
    dtype = window.distance2.dtype
    strides = jnp.array(grid.strides, dtype)[:, None]
    x = (window.column + jnp.array(grid.center_offset, dtype)) * strides + grid.offset_px
    y = (window.row + jnp.array(grid.center_offset, dtype)) * strides + grid.offset_px
    return jnp.stack([x, y], axis=-1)


def slot_ious(
    grid: AnchorGrid, centers: Float[Array, "G L S 2"], boxes: Float[Array, "G 4"]
) -> Float[Array, "G L S a"]:
    """IoU of every box with the anchors of its slots."""
    boxes = at_least_float32(boxes)
    sizes = np.stack([grid.cell_sizes(level) for level in range(grid.num_levels)])
    half = jnp.array(sizes / 2, boxes.dtype)[:, None]  # [L, 1, a, 2]
    area = jnp.array(sizes.prod(axis=-1), boxes.dtype)[:, None]  # [L, 1, a]
    x1, y1, x2, y2 = (boxes[:, i, None, None, None] for i in range(4))  # [G, 1, 1, 1]
    x, y = centers[..., 0, None], centers[..., 1, None]  # [G, L, S, 1]
    width = jnp.minimum(x + half[..., 0], x2) - jnp.maximum(x - half[..., 0], x1)
    height = jnp.minimum(y + half[..., 1], y2) - jnp.maximum(y - half[..., 1], y1)
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)  # [G, L, S, a]
    return intersection / (area + (x2 - x1) * (y2 - y1) - intersection)


def slots_in_box(
    centers: Float[Array, "G L S 2"], boxes: Float[Array, "G 4"], margin: float
) -> Bool[Array, "G L S"]:
    """True where a slot's centre is more than `margin` px inside its box, on all four sides."""
    x1, y1, x2, y2 = (boxes[:, i, None, None] for i in range(4))
    x, y = centers[..., 0], centers[..., 1]
    nearest_edge = jnp.minimum(jnp.minimum(x - x1, x2 - x), jnp.minimum(y - y1, y2 - y))
    return nearest_edge > margin
