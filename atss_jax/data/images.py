"""Pixels: resize, flip, crop, jitter, and write into a padded batch.

Everything is uint8 RGB, `[height, width, 3]`. Boxes follow the pixels in continuous coordinates.
Randomness comes from the plan: nothing here draws. Decoding is in `decoding.py`.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from atss_jax.data.decoding import ORIENTATION_TAG as ORIENTATION_TAG
from atss_jax.data.decoding import decode as decode
from atss_jax.data.decoding import orient as orient
from atss_jax.data.decoding import oriented_size as oriented_size
from atss_jax.data.decoding import read_header as read_header

MIN_VISIBLE = 0.25
"""Share of a box's area that a crop must keep for the box to stay ground truth."""

_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Augmentation(NamedTuple):
    """What the plan drew for one image."""

    flip: bool = False
    """Mirror left to right."""
    factor: float = 1.0
    """Factor on the resized size (large-scale jitter); what sticks out is cropped."""
    crop: tuple[float, float] = (0.5, 0.5)
    """(y, x) place of the crop window within its play, in [0, 1)."""
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Brightness, contrast and saturation factors; 1 changes nothing."""


class Placement(NamedTuple):
    """Where the content of a batch row came from."""

    size: tuple[int, int]
    """(h, w) of the content, px."""
    scale: tuple[float, float]
    """(y, x) factors, resized = original * scale."""
    offset: tuple[int, int]
    """(y, x) px of the crop window in the resized image."""


def resized_size(size: tuple[int, int], short_side: int, max_long_side: int) -> tuple[int, int]:
    """(h, w) after resizing: the official size with its long side held to the limit.

    The official arithmetic rounds the short side up for about a tenth of all aspect ratios, and its
    long side then exceeds `max_long_side` by a few px (1333 becomes 1334; 320 becomes 321 at
    240/320): such an image would fit no bucket of that limit. The short side stays official.

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


def write_row(
    row: UInt8[np.ndarray, "H W 3"],
    image: UInt8[np.ndarray, "h w 3"],
    target: tuple[int, int],
    augmentation: Augmentation,
) -> Placement:
    """Resizes, flips, crops and jitters an image straight into its row of a batch, padding 0.

    Args:
      row: what to fill, uninitialised.
      image: the decoded original.
      target: (h, w) of `resized_size`, at most the row's shape; a crop is never larger.
      augmentation: draws of the plan.

    Returns:
      Where the pixels came from, for `move_boxes`.
    """
    factor, place = augmentation.factor, augmentation.crop
    full = (max(1, round(target[0] * factor)), max(1, round(target[1] * factor)))
    size = (min(full[0], target[0]), min(full[1], target[1]))
    play = (full[0] - size[0], full[1] - size[1])
    offset = (int(place[0] * (play[0] + 1)), int(place[1] * (play[1] + 1)))
    scale = (full[0] / image.shape[0], full[1] / image.shape[1])
    content = row[: size[0], : size[1]]
    if augmentation.flip:
        image = cv2.flip(image, 1)  # before resizing up: fewer pixels
    if size == full:
        cv2.resize(image, (full[1], full[0]), dst=content, interpolation=cv2.INTER_LINEAR)
    else:
        resized = cv2.resize(image, (full[1], full[0]), interpolation=cv2.INTER_LINEAR)
        content[...] = resized[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]
    if augmentation.color != (1.0, 1.0, 1.0):
        content[...] = jitter_color(content, augmentation.color)
    row[size[0] :] = 0
    row[: size[0], size[1] :] = 0
    return Placement(size, scale, offset)


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


def move_boxes(
    boxes: Float[np.ndarray, "n 4"], width: int, placement: Placement, flip: bool
) -> tuple[Float[np.ndarray, "n 4"], np.ndarray]:
    """Boxes of the original image in the frame of the row.

    Args:
      boxes: xyxy px in the original.
      width: of the original, px.
      placement: from `write_row`.
      flip: whether it mirrored.

    Returns:
      xyxy px clipped to the content, and a mask of those that a crop left visible enough
      (`MIN_VISIBLE`, and more than a pixel each way where the box was larger than that).
    """
    moved = boxes.astype(np.float64)
    if flip:
        moved[:, [0, 2]] = width - moved[:, [2, 0]]
    moved *= np.tile(placement.scale[::-1], 2)
    moved -= np.tile(placement.offset[::-1], 2)
    height, content_width = placement.size
    clipped = moved.clip(0, [content_width, height, content_width, height])
    area, visible = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (moved, clipped))
    keep = visible >= MIN_VISIBLE * area
    keep &= (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped.astype(np.float32), keep
