"""Pixels: resize, flip, crop, jitter, and write into a padded batch.

Everything is uint8 RGB, `[height, width, 3]`. Boxes follow the pixels in continuous coordinates.
Nothing here draws: `augment.py` does. Decoding is in `decoding.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from atss_jax.data.decoding import ORIENTATION_TAG as ORIENTATION_TAG
from atss_jax.data.decoding import decode as decode
from atss_jax.data.decoding import orient as orient
from atss_jax.data.decoding import oriented_size as oriented_size
from atss_jax.data.decoding import read_header as read_header

MIN_VISIBLE = 0.25
"""Share of a box's area that a crop must keep for the box to stay ground truth."""

_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Placement(NamedTuple):
    """Where the content of a batch row comes from: flips, one resize and one crop, in this order.

    Geometric augmentations compose into one of these, so the pixels are resized once.
    """

    limit: tuple[int, int]
    """(h, w) that the content may have at most, px: the size that the plan resizes to."""
    full: tuple[int, int]
    """(h, w) of the whole image after resizing, px."""
    size: tuple[int, int]
    """(h, w) of the crop window, px."""
    offset: tuple[int, int] = (0, 0)
    """(y, x) px of the crop window in the resized image."""
    flip: tuple[bool, bool] = (False, False)
    """Whether the image is mirrored, (top to bottom, left to right)."""

    @classmethod
    def whole(cls, size: tuple[int, int], limit: tuple[int, int] | None = None) -> "Placement":
        """The whole image, resized to (h, w) px."""
        return cls(limit or size, size, size)

    def mirrored(self, axis: int) -> "Placement":
        """The content mirrored along an axis (0: top to bottom, 1: left to right)."""
        offset, flip = list(self.offset), list(self.flip)
        offset[axis] = self.full[axis] - self.size[axis] - offset[axis]
        flip[axis] = not flip[axis]
        return self._replace(offset=(offset[0], offset[1]), flip=(flip[0], flip[1]))

    def rescaled(self, factor: float) -> "Placement":
        """The content `factor` times as large, at least a pixel each way."""
        full, size, offset = [], [], []
        for axis in range(2):
            full.append(max(1, round(self.full[axis] * factor)))
            size.append(min(full[axis], max(1, round(self.size[axis] * factor))))
            offset.append(min(full[axis] - size[axis], round(self.offset[axis] * factor)))
        return self._replace(
            full=(full[0], full[1]), size=(size[0], size[1]), offset=(offset[0], offset[1])
        )

    def cropped(self, limit: tuple[int, int], place: tuple[float, float]) -> "Placement":
        """What is larger than `limit` is cropped to it, at a (y, x) place in [0, 1) of its play."""
        size, offset = [], []
        for axis in range(2):
            size.append(min(self.size[axis], limit[axis]))
            play = self.size[axis] - size[axis]
            offset.append(self.offset[axis] + int(place[axis] * (play + 1)))
        return self._replace(size=(size[0], size[1]), offset=(offset[0], offset[1]))

    def scale(self, image_size: tuple[int, ...]) -> tuple[float, float]:
        """(y, x) factors, resized = original * scale, of an original of (h, w, ...) px."""
        return self.full[0] / image_size[0], self.full[1] / image_size[1]


def resized_size(size: tuple[int, int], short_side: int, max_long_side: int) -> tuple[int, int]:
    """(h, w) after resizing: the official size with its long side held to the limit.

    The official arithmetic rounds the short side up for about a tenth of all aspect ratios, and its
    long side then exceeds `max_long_side` by a few px (1333 becomes 1334; 320 becomes 321 at
    240/320): such an image would fit no bucket of that limit. The short side stays the official
    one.

    Args:
      size: (h, w) of the original, px.
      short_side: wanted shorter side, px.
      max_long_side: limit of the longer side, px; at least `short_side`.

    Returns:
      Sides of at least 1 px and at most `max_long_side`.

    >>> resized_size((480, 640), 800, 1333), resized_size((640, 200), 800, 1333)
    ((800, 1066), (1333, 417))
    """
    height, width = official_resized_size(size, short_side, max_long_side)
    return min(height, max_long_side), min(width, max_long_side)


def official_resized_size(
    size: tuple[int, int], short_side: int, max_long_side: int
) -> tuple[int, int]:
    """(h, w) after resizing by the official arithmetic alone (CONVENTIONS, section 8).

    The short side becomes `short_side`, unless the long one would exceed `max_long_side`. Rounding
    of the short side, truncation of the long one, which may exceed its limit all the same.

    >>> official_resized_size((640, 200), 800, 1333)
    (1334, 417)
    """
    height, width = size
    short, long = min(size), max(size)
    if long / short * short_side > max_long_side:
        short_side = max(1, int(round(max_long_side * short / long)))
    if short == short_side:
        return height, width
    long_side = int(short_side * long / short)
    return (long_side, short_side) if width < height else (short_side, long_side)


INTERPOLATION = "cv2.INTER_AREA where both sides shrink to less than half, else cv2.INTER_LINEAR"
"""How images are resized, in words."""


def interpolation(image: np.ndarray, size: tuple[int, ...]) -> int:
    """OpenCV's flag for resizing an image to (h, w) px.

    Below half of the size, bilinear interpolation would skip pixels, and small objects of large
    photos with them; there, areas are averaged.
    """
    shrinks = 2 * size[0] < image.shape[0] and 2 * size[1] < image.shape[1]
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR


def write_row(
    row: UInt8[np.ndarray, "H W 3"],
    image: UInt8[np.ndarray, "h w 3"],
    placement: Placement,
    colors: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Flips, resizes, crops and jitters an image straight into its row of a batch, padding 0.

    Args:
      row: what to fill, uninitialised.
      image: the decoded original.
      placement: where its content goes; `placement.size` is at most the row's shape.
      colors: brightness, contrast and saturation factors for `jitter_color`, in order.
    """
    full, size, (top, left) = placement.full, placement.size, placement.offset
    content = row[: size[0], : size[1]]
    if any(placement.flip):  # before resizing up: fewer pixels
        image = cv2.flip(image, {(True, False): 0, (False, True): 1}.get(placement.flip, -1))
    if size == full:
        cv2.resize(image, (full[1], full[0]), dst=content, interpolation=interpolation(image, full))
    else:
        resized = cv2.resize(image, (full[1], full[0]), interpolation=interpolation(image, full))
        content[...] = resized[top : top + size[0], left : left + size[1]]
    for color in colors:
        if color != (1.0, 1.0, 1.0):
            content[...] = jitter_color(content, color)
    row[size[0] :] = 0
    row[: size[0], size[1] :] = 0


def jitter_color(
    image: UInt8[np.ndarray, "h w 3"], color: tuple[float, float, float]
) -> UInt8[np.ndarray, "h w 3"]:
    """Brightness, then contrast about the mean gray, then saturation, in one linear map."""
    brightness, contrast, saturation = color
    gray_row = np.tile(_GRAY_WEIGHTS, (3, 1))
    mean = float(np.array(cv2.mean(image)[:3]) @ _GRAY_WEIGHTS) * brightness
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray_row)
    affine = np.concatenate([matrix, np.full((3, 1), (1 - contrast) * mean)], axis=1)
    return cv2.transform(image, affine)


def blend(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"], share: float
) -> UInt8[np.ndarray, "h w 3"]:
    """`share` of the first image and the rest of the second."""
    return np.asarray(cv2.addWeighted(first, share, second, 1 - share, 0))


def move_boxes(
    boxes: Float[np.ndarray, "n 4"], image_size: tuple[int, ...], placement: Placement
) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Boxes of the original image in the frame of the row.

    Args:
      boxes: xyxy px in the original.
      image_size: (h, w, ...) of the original, px.
      placement: as given to `write_row`.

    Returns:
      float64 xyxy px clipped to the content, and a mask of those of which the crop left at least
      the share `MIN_VISIBLE`.
    """
    moved = boxes.astype(np.float64)
    for axis, low, high in ((0, 1, 3), (1, 0, 2)):
        if placement.flip[axis]:
            moved[:, [low, high]] = image_size[axis] - moved[:, [high, low]]
    (down, right), (top, left) = placement.scale(image_size), placement.offset
    moved *= (right, down, right, down)
    moved -= (left, top, left, top)
    height, width = placement.size
    clipped = np.minimum(np.maximum(moved, 0), (width, height, width, height))
    sides, visible = moved[:, 2:] - moved[:, :2], clipped[:, 2:] - clipped[:, :2]
    keep = visible[:, 0] * visible[:, 1] >= MIN_VISIBLE * (sides[:, 0] * sides[:, 1])
    keep &= (visible[:, 0] > 0) & (visible[:, 1] > 0)
    return clipped, keep
