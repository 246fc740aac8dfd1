"""Error types, confusion and the best threshold on scenes made by hand."""

import numpy as np

from atss_jax.evaluation.error_analysis import (
    KINDS,
    Scene,
    best_threshold,
    confusion_matrix,
    judge_image,
)

GT_BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 20], [50, 50, 60, 70]], float)
GT_LABELS = np.array([0, 1, 1])
BOXES = np.array(
    [
        [0, 0, 10, 9],  # finds object 0
        [0, 0, 10, 8],  # again
        [20, 0, 30, 19],  # object 1 as class 0
        [50, 60, 60, 90],  # near object 2, IoU 0.25
        [90, 90, 95, 99],  # nothing there
    ],
    float,
)
LABELS = np.array([0, 0, 0, 1, 0])
SCENE = Scene(BOXES, np.linspace(0.9, 0.5, 5), LABELS, GT_BOXES, GT_LABELS)


def test_each_kind():
    verdict = judge_image(SCENE)
    names = [KINDS[kind] for kind in verdict.kinds]
    assert names == ["correct", "duplicate", "class", "localisation", "background"]
    assert verdict.matched.tolist() == [0, 0, 1, 2, -1]
    assert verdict.is_missed.tolist() == [False, True, True]


def test_empty_sides():
    nothing, none = np.zeros((0, 4)), np.zeros(0, int)
    unseen = SCENE._replace(boxes=nothing, scores=np.zeros(0), labels=none)
    assert judge_image(unseen).is_missed.all()
    alone = judge_image(SCENE._replace(gt_boxes=nothing, gt_labels=none))
    assert {KINDS[kind] for kind in alone.kinds} == {"background"} and not alone.is_missed.size


def test_confusion_counts_everything_once():
    verdict = judge_image(SCENE)
    counts = confusion_matrix([SCENE], [verdict], 2)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1], [2, 1, 0]]


def test_best_threshold():
    image = Scene(
        BOXES[[0, 4, 2]],
        np.array([0.9, 0.8, 0.7]),
        np.array([0, 0, 1]),
        GT_BOXES[:2],
        GT_LABELS[:2],
    )
    threshold, precision, recall, f1 = best_threshold([image])
    assert (threshold, recall) == (0.7, 1.0)
    np.testing.assert_allclose([precision, f1], [2 / 3, 0.8])
    empty = image._replace(boxes=BOXES[:0], labels=LABELS[:0], scores=np.zeros(0))
    assert best_threshold([empty]) == (0.0, 0.0, 0.0, 0.0)
