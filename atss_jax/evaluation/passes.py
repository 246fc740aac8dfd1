"""Test-time augmentation: which passes over an image, and how their detections become one set.

Host code after `postprocess`: each pass is an ordinary inference at another size, mirrored or not
(`whole_split.evaluate` takes them); here are the list of passes, the size range that each pass is
trusted in, and the merging by box voting. ATSS Sec. 4.5 (Table 8, multi-scale testing); numbers
from the official evaluation. Everything is in the original image's continuous px.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atss_jax.geometry.pyramid import padded_side
from atss_jax.structures import Detections
from atss_jax.typing import Bool, Float, Int

PRESETS = ("none", "flip", "light", "paper")

BASE_SHORT_SIDE = 800
"""The short side that the official sizes and ranges below belong to, px."""

LARGE_LONG_SIDE = 3000 / 1333
"""Limit of the longer side for passes above the base size, relative to the base limit."""

UNLIMITED = 10_000.0
"""Official upper end of an open size range, px."""

PAPER_SIDES = {
    400: (96.0, UNLIMITED), 500: (96.0, UNLIMITED),
    600: (64.0, UNLIMITED), 640: (64.0, UNLIMITED), 700: (64.0, UNLIMITED),
    900: (0.0, UNLIMITED), 1000: (0.0, UNLIMITED),
    1100: (0.0, 256.0), 1200: (0.0, 256.0),
    1300: (0.0, 192.0), 1400: (0.0, 192.0),
    1800: (0.0, 96.0),
}  # fmt: skip
"""Short side -> sqrt of the box area that is trusted at that size, px of the resized image."""

LIGHT_SIDES = (600, 1000)
"""The sizes of the cheaper preset, from the list above."""

VOTE_IOU = 0.66
"""Boxes that overlap a better one of their class at least so much are merged into it."""

VOTE_SCORE = 0.05
"""Merged boxes whose score, reduced by their overlap, is still as high are kept as well."""

MAX_DETECTIONS = 1000
"""Detections of an image after voting (COCO's evaluation takes the best 100)."""


class Pass(NamedTuple):
    """One look at the images."""

    short_side: int
    max_long_side: int
    flip: bool
    min_size: float
    max_size: float
    """Boxes with min < sqrt(area in resized px) < max are kept."""


def make_passes(preset: str, short_side: int, max_long_side: int) -> tuple[Pass, ...]:
    """The passes of a preset, each size plain and mirrored.

    Args:
      preset: "none" (one plain pass), "flip" (plain and mirrored), "light" (three sizes, 6 passes)
        or "paper" (the official 26).
      short_side: base size, px. Sizes and ranges are the official ones for 800, and in proportion
        for another.
      max_long_side: limit of the longer side at the base size, px.

    Raises:
      ValueError: unknown preset.

    >>> len(make_passes("paper", 800, 1333)), make_passes("paper", 800, 1333)[-1][:3]
    (26, (1800, 3000, True))
    """
    if preset not in PRESETS:
        raise ValueError(f"eval.multiscale={preset!r}: use one of {', '.join(PRESETS)}.")
    if preset == "none":
        return (Pass(short_side, max_long_side, False, -1.0, np.inf),)
    sizes = [(short_side, max_long_side, -1.0, np.inf)]
    factor = short_side / BASE_SHORT_SIDE
    for side in {"flip": (), "light": LIGHT_SIDES, "paper": tuple(PAPER_SIDES)}[preset]:
        low, high = PAPER_SIDES[side]
        longest = max_long_side * (LARGE_LONG_SIDE if side >= BASE_SHORT_SIDE else 1)
        sizes.append((round(side * factor), round(longest), low * factor, high * factor))
    return tuple(
        Pass(short, longest, flip, low, high)
        for short, longest, low, high in sizes
        for flip in (False, True)
    )


def pass_buckets(
    targets: Int[np.ndarray, "N 2"], buckets: Sequence[tuple[int, int]], factor: float
) -> tuple[tuple[int, int], ...]:
    """Padded shapes for images of another size: the usual buckets, scaled, and what else is needed.

    Args:
      targets: (h, w) of all images in the pass, px.
      buckets: (H, W) at the base size.
      factor: short side of the pass relative to the base.
    """
    chosen = [tuple(padded_side(int(np.ceil(side * factor))) for side in b) for b in buckets]
    for height, width in np.unique(targets, axis=0).tolist():
        if not any(height <= h and width <= w for h, w in chosen):
            # Very long images, which only the base size limits to a bucket: coarse extra ones.
            chosen.append((-(-height // 128) * 128, -(-width // 128) * 128))
    return tuple(dict.fromkeys((int(h), int(w)) for h, w in chosen))


def in_size_range(
    boxes: Float[np.ndarray, "*#N 4"], scale: Float[np.ndarray, "*#N 2"], one_pass: Pass
) -> Bool[np.ndarray, "*#N"]:
    """True for boxes of a size that the pass is trusted in.

    Args:
      boxes: xyxy original px.
      scale: (y, x) factors of the pass, resized = original * scale.
      one_pass: the pass.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    size = np.sqrt(np.maximum(area * scale[..., 0] * scale[..., 1], 0))
    return (size > one_pass.min_size) & (size < one_pass.max_size)


def merge_images(
    passes: Sequence[tuple[Pass, Detections, Float[np.ndarray, "N 2"]]],
    *,
    max_detections: int = MAX_DETECTIONS,
) -> Detections:
    """One set of detections for each of N images from those of several passes.

    Args:
      passes: of each pass its settings, host detections [N, D] and scales; images in one order.
      max_detections: kept of each image.

    Returns:
      Detections [N, up to `max_detections`], sorted by descending score.
    """
    boxes, scores, labels = (
        np.concatenate([np.asarray(detections[field]) for _, detections, _ in passes], axis=1)
        for field in range(3)
    )
    keep = np.concatenate(
        [
            np.asarray(d.is_valid) & in_size_range(np.asarray(d.boxes), scale[:, None], one_pass)
            for one_pass, d, scale in passes
        ],
        axis=1,
    )
    num_images = len(keep)
    merged = [
        merge_image(boxes[i], scores[i], labels[i], keep[i], max_detections)
        for i in range(num_images)
    ]
    slots = max((len(scores) for _, scores, _ in merged), default=0)
    found = Detections(
        np.zeros((num_images, slots, 4), np.float32),
        np.zeros((num_images, slots), np.float32),
        np.zeros((num_images, slots), np.int32),
        np.zeros((num_images, slots), bool),
    )
    for i, (boxes, scores, labels) in enumerate(merged):
        for field, values in zip(found, (boxes, scores, labels, True), strict=True):
            field[i, : len(scores)] = values
    return found


def merge_image(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, keep: np.ndarray, max_detections: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes, scores, labels) of an image after voting within each class, best first."""
    parts = []
    for label in np.unique(labels[keep]):
        chosen = keep & (labels == label)
        voted_boxes, voted_scores = soft_vote(boxes[chosen], scores[chosen])
        parts.append((voted_boxes, voted_scores, np.full(len(voted_scores), label)))
    if not parts:
        return boxes[:0], scores[:0], labels[:0]
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")[:max_detections]
    return boxes[order], scores[order], labels[order]


def soft_vote(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    *,
    iou_threshold: float = VOTE_IOU,
    score_threshold: float = VOTE_SCORE,
) -> tuple[Float[np.ndarray, "M 4"], Float[np.ndarray, " M"]]:
    """Box voting among boxes of one class: clusters are averaged, and what was merged lingers.

    Greedy by score: all boxes with IoU >= `iou_threshold` to the best one form its cluster. It
    becomes their mean, weighted by score, with the best score. Each member comes back with its own
    box and score * (1 - IoU), if that is >= `score_threshold`.

    Args:
      boxes: xyxy px.
      scores: of each box.
      iou_threshold: of a cluster.
      score_threshold: of what lingers; above 1 for plain voting.

    Returns:
      Boxes and scores, sorted by descending score.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order].astype(np.float64), scores[order].astype(np.float64)
    voted_boxes, voted_scores = [], []
    while len(scores):
        iou = _iou_to_first(boxes)
        is_member = iou >= iou_threshold
        is_member[0] = True  # also a box without area
        weights = scores[is_member]
        voted_boxes.append(np.average(boxes[is_member], axis=0, weights=weights)[None])
        voted_scores.append(weights[:1])
        reduced = weights * (1 - iou[is_member])
        lingers = reduced >= score_threshold
        lingers[0] = False
        voted_boxes.append(boxes[is_member][lingers])
        voted_scores.append(reduced[lingers])
        boxes, scores = boxes[~is_member], scores[~is_member]
    if not voted_scores:
        return boxes.astype(np.float32), scores.astype(np.float32)
    boxes, scores = np.concatenate(voted_boxes), np.concatenate(voted_scores)
    order = np.argsort(-scores, kind="stable")
    return boxes[order].astype(np.float32), scores[order].astype(np.float32)


def _iou_to_first(boxes: np.ndarray) -> np.ndarray:
    """IoU of every box with the first; 0 where the union is empty."""
    sides = np.minimum(boxes[0, 2:], boxes[:, 2:]) - np.maximum(boxes[0, :2], boxes[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = areas[0] + areas - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)
