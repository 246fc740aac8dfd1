"""Image size, buckets and slots from the images and boxes of a set.

For `data.image_size` and `data.max_boxes`: what people set wrong on their own data.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, SupportsInt

import numpy as np

from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.images import resized_size
from atss_jax.errors import UserError
from atss_jax.typing import Float, Int

IMAGE_SIZES = (320, 416, 512, 640, 800, 1024, 1344)
"""Long sides to choose from, px."""
SMALL_OBJECT_PX = 16
"""Nine tenths of the objects shall have a box side (root of the area) of this after resizing: two
cells of P3, whose stride is 8."""
SMALL_SHARE = 10
"""Percentile of the box sides that is looked at."""
CELL = 32
"""Sides of buckets are multiples of it, px."""
MIN_GAIN = 0.1
"""A second shape of buckets shall save this share of all pixels: each costs a compilation."""
MIN_SLOTS = 8
"""Fewest slots of ground truth per image."""


class Sizes(NamedTuple):
    """Values of the fields of the same names in group "data"."""

    short_side: int
    max_long_side: int
    buckets: tuple[tuple[int, int], ...]


def relative_sides(dataset: DetectionDataset) -> np.ndarray:
    """Sides of the objects (root of width times height) as shares of their image's long side."""
    annotations = dataset.annotations
    kept = ~annotations.is_crowd
    sides = np.sqrt(np.prod(annotations.xywh[kept, 2:], axis=1))
    return sides / dataset.sizes.max(axis=1)[annotations.record[kept]]


def choose_image_size(sizes: Int[np.ndarray, "N 2"], sides: Float[np.ndarray, " M"]) -> int:
    """A long side for the network's input, px.

    The smallest of `IMAGE_SIZES` at which small objects keep `SMALL_OBJECT_PX`; images are not
    enlarged beyond the first choice that holds the median image.

    Args:
      sizes: (h, w) of the images, px.
      sides: of the objects, root of width times height, as shares of their image's long side.

    >>> choose_image_size(np.array([[480, 640]] * 9), np.full(50, 0.1))
    320
    """
    median = float(np.median(sizes.max(axis=1)))
    largest = next((size for size in IMAGE_SIZES if size >= median), IMAGE_SIZES[-1])
    for size in IMAGE_SIZES:
        if size >= largest or small_side(sides, size) >= SMALL_OBJECT_PX:
            return size
    return largest


def small_side(sides: Float[np.ndarray, " M"], image_size: int) -> float:
    """The side that nine tenths of the objects reach at a long side of `image_size`, px.

    Args:
      sides: as in `choose_image_size`.
      image_size: long side of the network's input, px.
    """
    return image_size * (float(np.percentile(sides, SMALL_SHARE)) if len(sides) else 1.0)


def derive_sizes(sizes: Int[np.ndarray, "N 2"], image_size: int) -> Sizes:
    """Short side, limit and buckets of a long side.

    The short side is that of the median shape. One shape of buckets holds every image, in either
    orientation; a smaller one is added where it saves a tenth of all pixels.

    Args:
      sizes: (h, w) of the images of all splits, px.
      image_size: wanted long side, px.

    Raises:
      UserError: a size below one cell.

    >>> derive_sizes(np.array([[480, 640]] * 9), 320)
    Sizes(short_side=240, max_long_side=320, buckets=((256, 320), (320, 256)))
    """
    if image_size < CELL:
        raise UserError(f"config.data.image_size={image_size}: give at least {CELL} px, or auto.")
    shape = np.median(sizes.min(axis=1) / sizes.max(axis=1))
    short_side = max(1, round(image_size * float(shape)))
    counts: Counter[tuple[int, int]] = Counter()
    for size in map(tuple, sizes.tolist()):
        low, high = sorted(resized_size(size, short_side, image_size))
        counts[_cells(low), _cells(high)] += 1
    full = (_cells(short_side), _cells(image_size))
    pixels = {shape: math.prod(shape) for shape in (*_candidates(counts), full)}

    def cost(other: tuple[int, int]) -> int:
        return sum(
            count * (pixels[other] if low <= other[0] and high <= other[1] else pixels[full])
            for (low, high), count in counts.items()
        )

    best = min(pixels, key=lambda shape: (cost(shape), shape))
    shapes = {full, best} if cost(best) <= (1 - MIN_GAIN) * cost(full) else {full}
    both = {bucket for low, high in shapes for bucket in ((low, high), (high, low))}
    return Sizes(short_side, image_size, tuple(sorted(both)))


def choose_max_boxes(num_boxes: Iterable[SupportsInt]) -> int:
    """Slots of ground truth: a quarter more than any image needs, in multiples of 8.

    >>> choose_max_boxes([3, 19])
    24
    """
    most = max([0, *map(int, num_boxes)])
    return max(MIN_SLOTS, 8 * math.ceil(1.25 * most / 8))


def _cells(side: int) -> int:
    return CELL * math.ceil(side / CELL)


def _candidates(counts: Counter[tuple[int, int]]) -> list[tuple[int, int]]:
    """Shapes that hold some images exactly, and those that hold two groups of them."""
    lows = sorted({low for low, _ in counts})
    highs = sorted({high for _, high in counts})
    return [pair for pair in itertools.product(lows, highs) if pair[0] <= pair[1]]
