"""What kind of mistakes a detector makes: matching at one score threshold, error types, confusion.

Host code after an evaluation, for `scripts/report.py`. It explains the metrics; it is not one:
`coco_metrics` is. Error types after Bolya et al., TIDE, ECCV 2020, Sec. 2.2, in a simple form.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KINDS = ("correct", "localisation", "class", "duplicate", "background")
"""What a detection can be, see `judge_image`."""

MATCH_IOU = 0.5
"""A detection finds an object of its class from this IoU on."""

NEAR_IOU = 0.1
"""Below this IoU with every object a detection lies on the background."""


class Verdicts(NamedTuple):
    """The detections and objects of an image, matched."""

    kinds: np.ndarray
    """Index into KINDS of each detection, [N]."""
    matched: np.ndarray
    """Object that a detection is about (found, near, or mistaken for another class); -1: none."""
    is_missed: np.ndarray
    """Objects that no detection found, [M]."""


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of all pairs of xyxy boxes, [N, M]."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.prod(np.maximum(bottom_right - top_left, 0), axis=-1)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=-1) for b in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)


def judge_image(
    boxes: np.ndarray, labels: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> Verdicts:
    """Matches detections to objects, greedily by score.

    A detection is "correct" when it is the first to reach IoU 0.5 with an object of its class,
    "duplicate" when that object was found before, "class" when it reaches 0.5 with an object of
    another class only, "localisation" when it lies between 0.1 and 0.5 of an object of its class,
    "background" otherwise.

    Args:
      boxes: xyxy px of the detections, best first.
      labels: of the detections.
      gt_boxes: xyxy px of the objects.
      gt_labels: of the objects.
    """
    kinds = np.full(len(boxes), KINDS.index("background"))
    matched = np.full(len(boxes), -1)
    is_missed = np.ones(len(gt_boxes), bool)
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return Verdicts(kinds, matched, is_missed)
    iou = pairwise_iou(np.asarray(boxes, np.float64), np.asarray(gt_boxes, np.float64))
    for i in range(len(boxes)):
        same = np.where(gt_labels == labels[i], iou[i], 0)
        other = np.where(gt_labels == labels[i], 0, iou[i])
        free = np.where(is_missed, same, 0)
        if free.max() >= MATCH_IOU:
            matched[i] = free.argmax()
            is_missed[matched[i]] = False
            kinds[i] = KINDS.index("correct")
        elif same.max() >= MATCH_IOU:
            matched[i], kinds[i] = same.argmax(), KINDS.index("duplicate")
        elif other.max() >= MATCH_IOU:
            matched[i], kinds[i] = other.argmax(), KINDS.index("class")
        elif same.max() >= NEAR_IOU:
            matched[i], kinds[i] = same.argmax(), KINDS.index("localisation")
    return Verdicts(kinds, matched, is_missed)


def confusion_matrix(
    images: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdicts], num_classes: int
) -> np.ndarray:
    """Counts [K + 1, K + 1]: rows are objects, columns detections; the last one is "nothing".

    A detection of a found or mistaken object counts in that object's row, any other detection in
    the last row, a missed object that was not even mistaken for another class in the last column.

    Args:
      images: of each image "labels" (detections) and "gt_labels" (objects).
      verdicts: of each image.
      num_classes: K.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image, verdict in zip(images, verdicts, strict=True):
        mistaken = set()
        for kind, label, about in zip(verdict.kinds, image["labels"], verdict.matched, strict=True):
            if KINDS[kind] in ("correct", "class"):
                counts[image["gt_labels"][about], label] += 1
                mistaken.add(int(about))
            else:
                counts[num_classes, label] += 1
        for i in np.flatnonzero(verdict.is_missed):
            if int(i) not in mistaken:
                counts[image["gt_labels"][i], num_classes] += 1
    return counts


def best_threshold(images: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    """The score threshold of the highest F1, with precision, recall and F1 there.

    Args:
      images: of each image "boxes", "labels", "scores" (best first), "gt_boxes", "gt_labels".
    """
    scores, is_correct = [np.zeros(0)], [np.zeros(0, bool)]
    num_objects = 0
    for image in images:
        verdict = judge_image(
            image["boxes"], image["labels"], image["gt_boxes"], image["gt_labels"]
        )
        scores.append(np.asarray(image["scores"], np.float64))
        is_correct.append(verdict.kinds == KINDS.index("correct"))
        num_objects += len(image["gt_labels"])
    all_scores, correct = np.concatenate(scores), np.concatenate(is_correct)
    if not correct.any():
        return 0.0, 0.0, 0.0, 0.0
    order = np.argsort(-all_scores, kind="stable")
    found = np.cumsum(correct[order])
    precision, recall = found / np.arange(1, len(order) + 1), found / num_objects
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    return (
        float(all_scores[order[best]]),
        float(precision[best]),
        float(recall[best]),
        float(f1[best]),
    )
