"""Sizes of the feature pyramid P3..P7, for whole buckets and for single images.

One rule, used by the anchors (which anchors exist for an image) and by the network (which cells
of a feature map belong to an image). It accepts Python ints as well as traced arrays.
"""

from typing import TypeVar

import jax.numpy as jnp

from atss_jax.typing import Array, Bool

STRIDES = (8, 16, 32, 64, 128)
"""Strides of P3..P7, px."""

PAD_MULTIPLE = 32
"""An image is padded to a multiple of this (the stride of C5), as in the official code."""

SizeT = TypeVar("SizeT", int, Array)


def halved(side: SizeT, times: int) -> SizeT:
    """`side` / 2**times, rounded up.

    By shifting: XLA's CPU backend repeats what a mask is computed from in every kernel that reads
    it, and an integer division is twenty instructions: a third of a small training step's program.

    Args:
      side: px or cells, at least 0: an int, or an int array of any shape.
      times: how often it is halved.

    >>> halved(1333, 5)
    42
    """
    return (side + (1 << times) - 1) >> times


def padded_side(side: SizeT) -> SizeT:
    """`side` px rounded up to a multiple of `PAD_MULTIPLE`."""
    return halved(side, 5) << 5


def level_sides(side: SizeT) -> tuple[SizeT, ...]:
    """Number of cells on P3..P7 along one side of an image.

    The image is padded to a multiple of 32; P3..P5 divide that by 8, 16, 32, then
    P6 = ceil(P5 / 2) and P7 = ceil(P6 / 2).

    Args:
      side: height or width of the image content, px: an int, or an int array of any shape.

    Returns:
      Five values of the type of `side`.

    >>> level_sides(800), level_sides(1333)
    ((100, 50, 25, 13, 7), (168, 84, 42, 21, 11))
    """
    p5 = halved(side, 5)
    p6 = halved(p5, 1)
    return p5 << 2, p5 << 1, p5, p6, halved(p6, 1)


def level_shapes(image_shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(h, w) of P3..P7 for an image or bucket of (H, W) px.

    >>> level_shapes((800, 1344))
    ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    """
    return tuple(zip(level_sides(image_shape[0]), level_sides(image_shape[1]), strict=True))


def inside_mask(shape: tuple[int, int], height: Array, width: Array) -> Bool[Array, "*B h w"]:
    """True for the cells of a map of static `shape` with row < `height` and column < `width`.

    Args:
      shape: (h, w) of the map.
      height: rows that belong to each image, any leading shape.
      width: columns, same shape as `height`.
    """
    rows = jnp.arange(shape[0]) < height[..., None]
    columns = jnp.arange(shape[1]) < width[..., None]
    return rows[..., :, None] & columns[..., None, :]
