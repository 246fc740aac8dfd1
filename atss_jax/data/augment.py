"""Augmentations: small pure functions of a sample and its draws.

A new one is one function here with `@augmentation`, and one entry of `data.augmentations` in a
recipe. Its arguments are checked by their annotations. Each gets numbers of its own, keyed by
(seed, step, row, place in the list): another entry at the end of the list changes no draw of the
others.

Flips, scales and crops act on the sample's placement alone, so the pixels are resized once, when
the row is written. Colours are changed after that, whatever their place in the list.
"""

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from atss_jax.config import Range
from atss_jax.data import images
from atss_jax.data.images import Placement

_STREAM = 2  # 0 and 1 are the plan's

Probability = Annotated[float, Range(0, 1)]


class NotBelow(NamedTuple):
    """Limit of an argument: at least another argument, by name."""

    argument: str


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """An image with boxes and what is to be done to it.

    Attributes:
      image: uint8 RGB, before `placement`.
      boxes: xyxy px in `image`.
      labels: dense labels of the boxes.
      placement: what the geometric augmentations have composed so far.
      colors: (brightness, contrast, saturation) factors to apply after the resize, in order.
    """

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]
    placement: Placement
    colors: tuple[tuple[float, float, float], ...] = ()

    def write(
        self, row: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Float[np.ndarray, "m 4"], Int[np.ndarray, " m"]]:
        """Fills a row with the pixels; returns float64 boxes and labels of what is visible."""
        images.write_row(row, self.image, self.placement, self.colors)
        boxes, keep = images.move_boxes(self.boxes, self.image.shape, self.placement)
        return boxes[keep], self.labels[keep]


class Draws:
    """The random numbers of one augmentation of one row: Philox 4x64, keyed by where it stands.

    The generator's raw output is fixed for all versions of NumPy, which its distributions are not.
    """

    def __init__(self, seed: int, step: int, row: int, place: int):
        self._key, self._counter = (seed % 2**64, _STREAM), (place, row, step)
        self._blocks, self._words = 0, []

    def uniform(self) -> float:
        """The next number, evenly from [0, 1)."""
        if not self._words:
            self._words = _philox_block(self._key, (self._blocks, *self._counter))[::-1]
            self._blocks += 1
        return (self._words.pop() >> 11) * 2.0**-53


_of_thread = threading.local()


def _philox_block(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Four words at a place of the stream; a new generator would take 8 times as long."""
    if not hasattr(_of_thread, "philox"):
        _of_thread.philox = np.random.Philox(0)
    state: Any = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # nothing is left in it
        "has_uint32": 0,
        "uinteger": 0,
    }
    _of_thread.philox.state = state
    return _of_thread.philox.random_raw(4).tolist()


Others = Callable[[float, tuple[int, int]], Sample]
"""(number in [0, 1), limit (h, w) px) -> a training image of the set, resized to fit the limit and
not augmented."""
FUNCTIONS: dict[str, Callable[..., Sample]] = {}
"""Name in a recipe -> function (sample, draws, *arguments), with `others` by keyword if it asks."""


def augmentation(function: Callable[..., Sample]) -> Callable[..., Sample]:
    """Makes a function an augmentation of its name."""
    FUNCTIONS[function.__name__] = function
    return function


@augmentation
def flip(sample: Sample, draws: Draws, probability: Probability) -> Sample:
    """Mirrors left to right."""
    return _mirrored(sample, 1) if draws.uniform() < probability else sample


@augmentation
def vertical_flip(sample: Sample, draws: Draws, probability: Probability) -> Sample:
    """Mirrors top to bottom; for images without an up, such as aerial ones."""
    return _mirrored(sample, 0) if draws.uniform() < probability else sample


@augmentation
def scale_crop(
    sample: Sample,
    draws: Draws,
    low: Annotated[float, Range(above=0)],
    high: Annotated[float, Range(above=0), NotBelow("low")],
) -> Sample:
    """Large-scale jitter: a factor on the size; what sticks out is cropped at a drawn place."""
    scaled = sample.placement.rescaled(low + (high - low) * draws.uniform())
    place = (draws.uniform(), draws.uniform())
    return dataclasses.replace(sample, placement=scaled.cropped(scaled.limit, place))


@augmentation
def color_jitter(
    sample: Sample, draws: Draws, strength: Annotated[float, Range(0, below=1)]
) -> Sample:
    """Brightness, contrast and saturation factors, each from 1 - strength to 1 + strength."""
    brightness, contrast, saturation = (1 + strength * (2 * draws.uniform() - 1) for _ in range(3))
    color = (brightness, contrast, saturation)
    return dataclasses.replace(sample, colors=(*sample.colors, color))


@augmentation
def mosaic(sample: Sample, draws: Draws, probability: Probability, *, others: Others) -> Sample:
    """This image and three others meet at a point of a canvas (arXiv 2004.10934, Sec. 3.3).

    The canvas has the size that this image would have alone; the point lies in its middle half.
    Each image keeps its scale and is cropped to its quarter at a drawn place. Boxes of which less
    than `images.MIN_VISIBLE` is left are dropped.
    """
    if draws.uniform() >= probability:
        return sample
    height, width = sample.placement.limit
    center = [round(side * (0.25 + 0.5 * draws.uniform())) for side in (height, width)]
    canvas = np.zeros((height, width, 3), np.uint8)
    boxes, labels = [], []
    for quarter in range(4):
        part = others(draws.uniform(), (height, width)) if quarter else sample
        is_low, is_right = quarter >= 2, quarter % 2 == 1
        room = (
            height - center[0] if is_low else center[0],
            width - center[1] if is_right else center[1],
        )
        if min(room) < 1:  # a canvas of a pixel
            continue
        placement = part.placement.cropped(room, (draws.uniform(), draws.uniform()))
        top = center[0] if is_low else center[0] - placement.size[0]
        left = center[1] if is_right else center[1] - placement.size[1]
        window = canvas[top : top + placement.size[0], left : left + placement.size[1]]
        found, kinds = dataclasses.replace(part, placement=placement).write(window)
        boxes.append(found + [left, top, left, top])
        labels.append(kinds)
    placement = Placement.whole((height, width))
    return Sample(canvas, np.concatenate(boxes), np.concatenate(labels), placement)


@augmentation
def mixup(sample: Sample, draws: Draws, probability: Probability, *, others: Others) -> Sample:
    """Blends with another image, top left corners together (arXiv 1902.04103, Sec. 3.1).

    The share of this image is drawn from Beta(1.5, 1.5), as there. The boxes of both images are
    kept with full weight, where the paper weighs their losses by the shares.
    """
    if draws.uniform() >= probability:
        return sample
    limit = sample.placement.limit
    parts = (sample, others(draws.uniform(), limit))
    # Beta(1.5, 1.5) is a semicircle: one coordinate of a point drawn evenly from a disc
    share = 0.5 + 0.5 * math.sqrt(draws.uniform()) * math.cos(2 * math.pi * draws.uniform())
    height, width = (max(part.placement.size[axis] for part in parts) for axis in range(2))
    canvases = np.empty((2, height, width, 3), np.uint8)
    found = [part.write(canvas) for part, canvas in zip(parts, canvases, strict=True)]
    return Sample(
        images.blend(canvases[0], canvases[1], share),
        np.concatenate([boxes for boxes, _ in found]),
        np.concatenate([labels for _, labels in found]),
        Placement.whole((height, width), limit),
    )


def _mirrored(sample: Sample, axis: int) -> Sample:
    return dataclasses.replace(sample, placement=sample.placement.mirrored(axis))
