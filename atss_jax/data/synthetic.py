"""The procedural sets `shapes` and `shapes_crowded`: every image a pure function of (split, index).

Six classes that differ by outline, drawn over textured backgrounds with noise: enough to see a
detector learn in minutes, small enough to build in seconds. Image sizes vary and are not square;
objects go from tiny to image-filling and overlap; some images have none.

`shapes_crowded` is for comparing assigners: sides over five octaves, objects up to five times as
long as wide, small objects on top of large ones, more of them in an image. It has one class,
whatever the outline, so that a network learns to find and bound objects within a few hundred steps.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

CLASS_NAMES = ("circle", "square", "triangle", "diamond", "cross", "ring")
"""Outlines, and the classes of `shapes`."""
SPLIT_SIZES = {"train": 2000, "validation": 200}
EMPTY_FRACTION = 0.05
MAX_OVERLAP = 0.35
"""Largest share of a box that another box covers: of the smaller of the two, or in a crowded set of
the lower one, which is never the smaller."""
OCTAVES = 5
"""`shapes_crowded`: sides go from a 2^5th of the largest image side to all of it."""
_SUBPIXEL_BITS = 4
_SEEDS = {"train": 1, "validation": 2}


class Style(NamedTuple):
    """What the images of a set look like."""

    sizes: tuple[tuple[int, int], ...]
    """(h, w) px of the images."""
    objects: tuple[int, int]
    """Fewest and most objects in an image that is not empty."""
    elongation: float
    """Largest |ln| of a side over the geometric mean of both sides."""
    is_crowded: bool
    """Sides log-uniform over `OCTAVES`, and large objects below small ones."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """Of the outlines, or one for all of them."""


STYLES = {
    "shapes": Style(
        ((128, 160), (120, 160), (128, 152), (112, 144), (128, 136), (96, 128)), (1, 6), 0.2, False
    ),
    "shapes_crowded": Style(
        ((192, 192), (192, 160), (160, 192), (176, 192)), (3, 14), 0.7, True, ("object",)
    ),
}
"""Name of a set -> its style."""


class Scene(NamedTuple):
    """One image and what is in it."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float[np.ndarray, "n 4"]
    """xyxy px, tight around the visible outline (inside the image)."""
    labels: Int[np.ndarray, " n"]


def make_scene(split: str, index: int, name: str = "shapes") -> Scene:
    """The scene of a split at an index.

    Args:
      split: "train" or "validation".
      index: any number from 0.
      name: of the set, one of `STYLES`.
    """
    style = STYLES[name]
    rng = np.random.Generator(np.random.Philox(key=[_SEEDS[split], index]))
    height, width = style.sizes[rng.integers(len(style.sizes))]
    image = _background(rng, height, width)
    fewest, most = style.objects
    count = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(fewest, most + 1))
    given: list[float | None] = [None] * count
    if style.is_crowded:
        largest = np.log(max(max(size) for size in style.sizes))
        octaves = rng.uniform(-OCTAVES * np.log(2), 0, count)
        given = np.sort(np.exp(largest + octaves))[::-1].tolist()
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    for side in given:
        box = _place(rng, height, width, boxes, style, side)
        if box is None:
            continue
        label = int(rng.integers(len(CLASS_NAMES)))
        boxes.append(_draw(rng, image, label, box))
        labels.append(min(label, len(style.class_names) - 1))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 10))
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return Scene(image, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64))


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth gradient between muted colours with soft blobs."""
    coarse = rng.uniform(40, 200, (1, 1, 3)) + rng.normal(0, 18, (4, 5, 3))
    coarse = coarse.astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255)


def _side(rng: np.random.Generator, height: int) -> float:
    """Mostly 14 to 64 px, now and then tiny or as high as the image."""
    kind = rng.random()
    if kind < 0.04:
        return rng.uniform(7, 12)
    if kind < 0.12:
        return rng.uniform(0.65, 0.98) * height
    return float(np.exp(rng.uniform(np.log(14), np.log(64))))


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    taken: list[np.ndarray],
    style: Style,
    given: float | None,
) -> np.ndarray | None:
    """A box that does not hide too much of those below it, nor is lost among them.

    Args:
      rng: of the scene.
      height: of the image, px.
      width: of the image, px.
      taken: boxes below.
      style: of the set.
      given: geometric mean of the sides, px; None draws one.
    """
    for _ in range(20):
        side = _side(rng, height) if given is None else given
        aspect = np.exp(rng.uniform(-style.elongation, style.elongation))
        w, h = min(side * aspect, width - 2), min(side / aspect, height - 2)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = np.array([x, y, x + w, y + h])
        if all(_cover(box, other, style.is_crowded) <= MAX_OVERLAP for other in taken):
            return box
    return None


def _cover(box: np.ndarray, lower: np.ndarray, is_crowded: bool) -> float:
    """Shared area over that of the smaller box, or of the lower one in a crowded set."""
    sides = np.minimum(box[2:], lower[2:]) - np.maximum(box[:2], lower[:2])
    areas = [float(np.prod(b[2:] - b[:2])) for b in (box, lower)]
    return float(np.prod(np.maximum(sides, 0))) / (areas[1] if is_crowded else min(areas))


def _draw(rng: np.random.Generator, image: np.ndarray, label: int, box: np.ndarray) -> np.ndarray:
    """Paints an object that fills its box, and returns the box."""
    mask = _coverage(CLASS_NAMES[label], box, image.shape[:2])
    ground = np.array(cv2.mean(image, mask)[:3])
    color = rng.uniform(0, 255, 3)
    while np.abs(color - ground).max() < 80:
        color = rng.uniform(0, 255, 3)
    shade = np.linspace(0.85, 1.15, image.shape[0])[:, None, None]
    shade = shade if rng.random() < 0.5 else np.ones_like(shade)
    paint = np.clip(color * shade, 0, 255).astype(np.float32)
    rows = slice(int(box[1]), int(box[3]) + 2)
    alpha = mask[rows, :, None] / np.float32(255)
    image[rows] += alpha * (paint[rows] - image[rows])
    return box


def _coverage(name: str, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Share of each pixel that the outline covers, 0..255, drawn without steps."""
    mask = np.zeros(shape, np.uint8)
    # OpenCV's pixel centres lie at integers, ours at halves; it paints half a pixel too far
    x1, y1, x2, y2 = box - 0.5 + np.array([0.5, 0.5, -0.5, -0.5])
    cx, cy, rx, ry = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    third = 0.36
    outlines = {
        "circle": [circle],
        "square": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
        "triangle": [[(0, -1), (1, 1), (-1, 1)]],
        "diamond": [[(0, -1), (1, 0), (0, 1), (-1, 0)]],
        "cross": [
            [
                (-third, -1), (third, -1), (third, -third), (1, -third), (1, third),
                (third, third), (third, 1), (-third, 1), (-third, third), (-1, third),
                (-1, -third), (-third, -third),
            ]
        ],
        "ring": [circle, 0.5 * circle],
    }  # fmt: skip
    polygons = [
        np.round((np.asarray(o, float) * (rx, ry) + (cx, cy)) * 2**_SUBPIXEL_BITS).astype(np.int32)
        for o in outlines[name]
    ]
    cv2.fillPoly(mask, polygons, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return mask
