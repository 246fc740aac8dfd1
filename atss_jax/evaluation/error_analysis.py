"""What kind of mistakes a detector makes: matching at one score threshold, error types, confusion.

Host code after an evaluation, for the report. It explains the metrics; it is not one:
`coco_metrics` is. Error types after Bolya et al., TIDE, ECCV 2020, Sec. 2.2, in a simple form.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("correct", "localisation", "class", "duplicate", "background")
"""What a detection can be, see `judge_image`."""

MATCH_IOU = 0.5
"""A detection finds an object of its class from this IoU on."""

NEAR_IOU = 0.1
"""Below this IoU with every object a detection lies on the background."""


class Scene(NamedTuple):
    """The detections and objects of one image; host arrays, xyxy px."""

    boxes: np.ndarray
    """[N, 4], best first."""
    scores: np.ndarray
    """[N], descending."""
    labels: np.ndarray
    """[N]."""
    gt_boxes: np.ndarray
    """[M, 4]."""
    gt_labels: np.ndarray
    """[M]."""


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


def judge_image(scene: Scene) -> Verdicts:
    """Matches detections to objects, greedily by score.

    A detection is "correct" when it is the first to reach IoU 0.5 with an object of its class,
    "duplicate" when that object was found before, "class" when it reaches 0.5 with an object of
    another class only, "localisation" when it lies between 0.1 and 0.5 of an object of its class,
    "background" otherwise.

    Args:
      scene: of the image.
    """
    boxes, labels, gt_boxes, gt_labels = scene.boxes, scene.labels, scene.gt_boxes, scene.gt_labels
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
    scenes: Sequence[Scene], verdicts: Sequence[Verdicts], num_classes: int
) -> np.ndarray:
    """Counts [K + 1, K + 1]: rows are objects, columns detections; the last one is "nothing".

    A detection of a found or mistaken object counts in that object's row, any other detection in
    the last row, a missed object that was not even mistaken for another class in the last column.

    Args:
      scenes: of each image.
      verdicts: of each image, from `judge_image`.
      num_classes: K.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for scene, verdict in zip(scenes, verdicts, strict=True):
        mistaken = set()
        for kind, label, about in zip(verdict.kinds, scene.labels, verdict.matched, strict=True):
            if KINDS[kind] in ("correct", "class"):
                counts[scene.gt_labels[about], label] += 1
                mistaken.add(int(about))
            else:
                counts[num_classes, label] += 1
        for i in np.flatnonzero(verdict.is_missed):
            if int(i) not in mistaken:
                counts[scene.gt_labels[i], num_classes] += 1
    return counts


class ThresholdCurves(NamedTuple):
    """What each score threshold gives, best scores first; [N] each, empty without detections."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> tuple[float, float, float, float]:
        """(threshold, precision, recall, F1) where F1 is highest; zeros if nothing is correct."""
        if not self.f1.any():
            return 0.0, 0.0, 0.0, 0.0
        best = int(self.f1.argmax())
        threshold, precision, recall, f1 = (float(field[best]) for field in self)
        return threshold, precision, recall, f1


def threshold_curves(scenes: Sequence[Scene]) -> ThresholdCurves:
    """Precision, recall and F1 over all classes at IoU 0.5 for every score that occurs.

    Args:
      scenes: of each image.
    """
    scores, is_correct = [np.zeros(0)], [np.zeros(0, bool)]
    num_objects = 0
    for scene in scenes:
        verdict = judge_image(scene)
        scores.append(np.asarray(scene.scores, np.float64))
        is_correct.append(verdict.kinds == KINDS.index("correct"))
        num_objects += len(scene.gt_labels)
    all_scores, correct = np.concatenate(scores), np.concatenate(is_correct)
    order = np.argsort(-all_scores, kind="stable")
    found = np.cumsum(correct[order])
    precision = found / np.arange(1, len(order) + 1)
    recall = found / max(num_objects, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return ThresholdCurves(all_scores[order], precision, recall, f1)


def best_threshold(scenes: Sequence[Scene]) -> tuple[float, float, float, float]:
    """The score threshold of the highest F1, with precision, recall and F1 there.

    Args:
      scenes: of each image.
    """
    return threshold_curves(scenes).best()
