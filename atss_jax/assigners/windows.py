"""The anchor locations near a box that can be among its k best, without looking at the others.

Centres lie on a regular grid, so "the r-th nearest row" and "the c-th nearest column" of a point
are known in closed form. A location (r, c), in such ranks, is no nearer than any location
(r', c') with r' <= r and c' <= c. There are (r + 1) (c + 1) of those, itself included, so only

    (r + 1) (c + 1) <= k

can be among the k nearest (ties included: in both ranks, as in the order of anchors, the lower
index comes first). These are sum_r floor(k / (r + 1)) ~ k ln k slots (23 for k = 9),
whatever the grid: one row high, smaller than k, or with the point in a corner or outside. The same
holds for every score that falls with the distance along x and along y, such as the IoU with
anchors of one shape.

Arrays here are `[L, S, G]`, with the objects last: on CPUs that is what vectorises.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, box_centers
from atss_jax.typing import AnyArray, Array, Bool, Float, Int


class Locations(NamedTuple):
    """Cells of the pyramid around each box, S slots a level."""

    row: Int[Array, "L S G"]
    column: Int[Array, "L S G"]
    exists: Bool[Array, "L S G"]
    """False where the image's own grid has too few cells; row and column mean nothing there."""


@functools.lru_cache
def slot_ranks(num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (r, c) of the slots with (r + 1) (c + 1) <= k: two int32 [S].

    >>> [ranks.tolist() for ranks in slot_ranks(3)]
    [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0]]
    """
    ranks = [(r, c) for r in range(num_nearest) for c in range(num_nearest // (r + 1))]
    row, column = np.array(ranks, np.int32).T
    return row, column


def nearest_integers(
    position: Float[Array, " G"], count: Int[Array, ""], rank: Int[np.ndarray, " S"]
) -> Int[Array, "S G"]:
    """The integer of [0, count) that is the `rank`-th nearest to `position`; lower ones first.

    Left and right neighbours take turns until one side is used up; from there on it is the other
    side's. Means nothing where rank >= count.

    Args:
      position: any finite numbers, also outside [0, count).
      count: how many integers there are.
      rank: from 0.

    >>> nearest_integers(jnp.array([1.2, 3.0]), jnp.array(5), np.arange(5)).T.tolist()
    [[1, 2, 0, 3, 4], [3, 2, 4, 1, 0]]
    """
    rank = rank[:, None]
    ceiling = jnp.ceil(jnp.clip(position, -1, count + 1))
    left = jnp.clip(ceiling.astype(jnp.int32), 0, count)  # integers < position
    right = count - left
    left_first = ((ceiling - position) >= 0.5).astype(jnp.int32)
    num_pairs = jnp.minimum(left, right)
    is_paired = rank < 2 * num_pairs
    is_left = jnp.where(is_paired, (rank + left_first) % 2 == 1, left > right)
    depth = jnp.where(is_paired, rank // 2, rank - num_pairs)
    return jnp.where(is_left, left - 1 - depth, left + depth)


class _Level(NamedTuple):
    """One level's numbers; stacked over L for scans."""

    rows: Int[Array, "*L"]
    columns: Int[Array, "*L"]
    stride: Float[Array, "*L"]


def _levels(grid: AnchorGrid, image_size: Int[AnyArray, "2"], dtype: np.dtype) -> _Level:
    own = grid.own_level_shapes(jnp.asarray(image_size)).astype(jnp.int32)
    return _Level(own[:, 0], own[:, 1], jnp.array(grid.strides, dtype))


def _window(
    grid: AnchorGrid, level: _Level, boxes: Array, num_nearest: int
) -> tuple[Locations, Array]:
    """Locations [S, G] of one level and their squared distances in strides^2."""
    row_rank, column_rank = slot_ranks(num_nearest)
    position = (box_centers(boxes).T - grid.offset_px) / level.stride - grid.center_offset  # [2, G]
    column = nearest_integers(position[0], level.columns, column_rank)
    row = nearest_integers(position[1], level.rows, row_rank)
    exists = ((row_rank < level.rows) & (column_rank < level.columns))[:, None]
    distance2 = (column - position[0]) ** 2 + (row - position[1]) ** 2
    return Locations(row, column, jnp.broadcast_to(exists, row.shape)), distance2


def window_locations(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    boxes: Float[AnyArray, "G 4"],
    num_nearest: int,
) -> Locations:
    """On each level, all locations that can be among the `num_nearest` of a box.

    Args:
      grid: the anchors.
      image_size: (h, w) of the content, px.
      boxes: xyxy px, finite.
      num_nearest: k.
    """
    boxes = at_least_float32(jnp.asarray(boxes))
    levels = _levels(grid, image_size, boxes.dtype)
    _, locations = lax.scan(
        lambda _, level: (None, _window(grid, level, boxes, num_nearest)[0]), None, levels
    )
    return locations


def nearest_locations(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    boxes: Float[AnyArray, "G 4"],
    num_nearest: int,
) -> Locations:
    """On each level, the `num_nearest` locations nearest to each box's centre, nearest first.

    At equal distance the lower index, row by row, comes first. A slot's place in the order is the
    number of slots before it: comparing all pairs is cheaper than sorting so few.

    Args:
      grid: the anchors.
      image_size: (h, w) of the content, px.
      boxes: xyxy px, finite.
      num_nearest: k; S of the result.
    """
    boxes = at_least_float32(jnp.asarray(boxes))
    levels = _levels(grid, image_size, boxes.dtype)

    def measure(_: None, level: _Level) -> tuple[None, tuple[Array, Array]]:
        window, distance2 = _window(grid, level, boxes, num_nearest)
        cell = (window.row << 16) | window.column  # rises row by row
        return None, (jnp.where(window.exists, distance2, jnp.inf), cell)

    def count_before(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        distance2, cell = inputs
        place = jnp.zeros(cell.shape, jnp.int32)
        for other, other_cell in zip(distance2, cell, strict=True):
            is_before = (other < distance2) | ((other == distance2) & (other_cell < cell))
            place = place + is_before
        return None, (jnp.where(distance2 < jnp.inf, place, num_nearest), cell)

    def put_in_order(_: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        place, cell = inputs
        ordered = jnp.full((num_nearest, cell.shape[1]), -1, jnp.int32)
        for slot_place, slot_cell in zip(place, cell, strict=True):
            is_here = slot_place == jnp.arange(num_nearest)[:, None]
            ordered = jnp.where(is_here, slot_cell, ordered)
        return None, ordered

    # NOTE: three scans, not one function of [L, S, G]. What a scan returns is stored, while XLA may
    # compute a fused value anew for each use: rounded differently (with or without a fused
    # multiply-add), so that a location comes before itself, and at five times the cost.
    _, measured = lax.scan(measure, None, levels)
    _, placed = lax.scan(count_before, None, measured)
    _, ordered = lax.scan(put_in_order, None, placed)
    return Locations(row=ordered >> 16, column=ordered & 0xFFFF, exists=ordered >= 0)


def location_index(grid: AnchorGrid, locations: Locations) -> Int[Array, "L S G"]:
    """Index of each location's first anchor, over all levels; 0 where there is no location."""
    widths = np.array([w for _, w in grid.level_shapes], np.int32)[:, None, None]
    starts = np.array(grid.level_starts, np.int32)[:, None, None]
    index = starts + (locations.row * widths + locations.column) * grid.num_per_location
    return jnp.where(locations.exists, index, 0)


def location_centers(
    grid: AnchorGrid, locations: Locations, dtype: np.dtype
) -> tuple[Float[Array, "L S G"], Float[Array, "L S G"]]:
    """(x, y) px of each location's anchor centre."""
    strides = jnp.array(grid.strides, dtype)[:, None, None]
    x = (locations.column.astype(dtype) + grid.center_offset) * strides + grid.offset_px
    y = (locations.row.astype(dtype) + grid.center_offset) * strides + grid.offset_px
    return x, y


def location_ious(
    grid: AnchorGrid,
    x: Float[Array, "L S G"],
    y: Float[Array, "L S G"],
    boxes: Float[Array, "G 4"],
) -> Float[Array, "L S a G"]:
    """IoU of every box with the anchors at its locations.

    Args:
      grid: the anchors.
      x: centres of the locations, px.
      y: as `x`.
      boxes: xyxy px.
    """
    sizes = np.stack([grid.cell_sizes(level) for level in range(grid.num_levels)])  # [L, a, 2]
    half = jnp.array(sizes / 2, boxes.dtype)[..., None]  # [L, a, 2, 1]
    area = jnp.array(sizes.prod(axis=-1), boxes.dtype)[..., None]  # [L, a, 1]
    x1, y1, x2, y2 = boxes.T

    def level_ious(_: None, inputs: tuple[Array, Array, Array, Array]) -> tuple[None, Array]:
        half, area, x, y = inputs
        half_width, half_height = half[:, 0], half[:, 1]  # [a, 1]
        x, y = x[:, None], y[:, None]  # [S, 1, G]
        width = jnp.minimum(x + half_width, x2) - jnp.maximum(x - half_width, x1)
        height = jnp.minimum(y + half_height, y2) - jnp.maximum(y - half_height, y1)
        shared = jnp.maximum(width, 0) * jnp.maximum(height, 0)  # [S, a, G]
        return None, shared / (area + (x2 - x1) * (y2 - y1) - shared)

    # A scan: each IoU is rounded once (see `nearest_locations`), as conflicts ask for equality.
    return lax.scan(level_ious, None, (half, area, x, y))[1]


def nearest_edge(
    x: Float[Array, "*#N"], y: Float[Array, "*#N"], boxes: Float[Array, "*G 4"]
) -> Float[Array, "*N"]:
    """Smallest distance px from points to the edges of boxes, negative outside. Broadcasts."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.minimum(jnp.minimum(x - x1, x2 - x), jnp.minimum(y - y1, y2 - y))
