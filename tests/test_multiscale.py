"""Multi-scale testing: the official passes and votes, size ranges, merging."""

from pathlib import Path

import numpy as np
import pytest

from atss_jax.evaluation.passes import (
    PAPER_SIDES,
    Pass,
    in_size_range,
    make_passes,
    merge_images,
    pass_buckets,
    soft_vote,
)
from atss_jax.structures import Detections

GOLDEN = Path(__file__).parent / "golden"
ONE_MORE = np.array([0, 0, 1, 1], np.float32)  # official boxes are inclusive


@pytest.mark.parametrize("case", ["n2", "n60", "n300"])
@pytest.mark.parametrize(("kind", "score_threshold"), [("vote", 2.0), ("soft_vote", 0.05)])
def test_votes_equal_official(case, kind, score_threshold):
    golden = np.load(GOLDEN / "nms_vote.npz")
    expected_boxes = golden[f"{case}/{kind}066_boxes"] + ONE_MORE
    expected_scores = golden[f"{case}/{kind}066_scores"]
    boxes, scores = soft_vote(
        golden[f"{case}/boxes"] + ONE_MORE,
        golden[f"{case}/scores"],
        score_threshold=score_threshold,
    )
    assert len(scores) == len(expected_scores)
    order = np.argsort(-expected_scores, kind="stable")
    np.testing.assert_allclose(scores, expected_scores[order], atol=1e-5)
    np.testing.assert_allclose(boxes, expected_boxes[order], atol=1e-2)


@pytest.mark.parametrize("case", ["n0", "n1"])
def test_single_boxes_pass_through(case):
    golden = np.load(GOLDEN / "nms_vote.npz")
    boxes, scores = soft_vote(golden[f"{case}/boxes"], golden[f"{case}/scores"])
    np.testing.assert_array_equal(boxes, golden[f"{case}/boxes"])
    np.testing.assert_array_equal(scores, golden[f"{case}/scores"])


def test_official_passes():
    passes = make_passes("paper", 800, 1333)
    assert len(passes) == 26 and passes[:2] == (
        Pass(800, 1333, False, -1.0, np.inf),
        Pass(800, 1333, True, -1.0, np.inf),
    )
    for one_pass, side in zip(passes[2::2], PAPER_SIDES, strict=True):
        assert one_pass.short_side == side and not one_pass.flip
        assert one_pass.max_long_side == (1333 if side < 800 else 3000)
    assert make_passes("flip", 240, 400) == (
        Pass(240, 400, False, -1.0, np.inf),
        Pass(240, 400, True, -1.0, np.inf),
    )
    assert [p.short_side for p in make_passes("light", 240, 400)[::2]] == [240, 180, 300]
    assert len(make_passes("none", 240, 400)) == 1
    with pytest.raises(ValueError, match="eval.multiscale='full': use one of none, flip"):
        make_passes("full", 800, 1333)


def test_buckets_hold_every_image():
    targets = np.array([[900, 1200], [750, 3000], [1200, 900]])
    buckets = pass_buckets(targets, [(800, 1088), (1088, 800)], 1.125)
    assert buckets == ((928, 1248), (1248, 928), (768, 3072))


def test_size_range_counts_resized_pixels():
    box = np.array([[0, 0, 50, 50]], np.float32)
    one_pass = Pass(400, 1333, False, 96.0, 10_000.0)
    assert not in_size_range(box, np.array([[1.9, 1.9]]), one_pass)[0]
    assert in_size_range(box, np.array([[1.9, 2.0]]), one_pass)[0]


def test_merging_keeps_classes_and_images_apart():
    def detections(shift):
        boxes = np.zeros((2, 3, 4), np.float32) + [10, 20, 40, 30]
        boxes[..., ::2] += shift
        scores = np.array([[0.9, 0.6, 0.5], [0.8, 0.0, 0.0]], np.float32)
        labels = np.array([[1, 0, 7], [1, 0, 0]], np.int32)
        is_valid = np.array([[True, True, False], [True, False, False]])
        return Detections(boxes, scores, labels, is_valid)

    anything, large = Pass(8, 9, False, -1.0, np.inf), Pass(8, 9, True, 500.0, np.inf)
    scale = np.ones((2, 2))
    merged = merge_images(
        [(anything, detections(0), scale), (anything, detections(2), scale),
         (large, detections(4), scale)]
    )  # fmt: skip
    assert merged.is_valid.tolist() == [[True] * 4, [True] * 2 + [False] * 2]
    assert merged.labels[0].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(merged.boxes[0, :2], [[11, 20, 41, 30]] * 2, atol=1e-4)
    iou = 280 / 320
    np.testing.assert_allclose(
        merged.scores[0], [0.9, 0.6, 0.9 * (1 - iou), 0.6 * (1 - iou)], atol=1e-6
    )


def test_nothing_found():
    empty = Detections(
        np.zeros((1, 2, 4), np.float32), np.zeros((1, 2), np.float32),
        np.zeros((1, 2), np.int32), np.zeros((1, 2), bool),
    )  # fmt: skip
    merged = merge_images([(Pass(8, 9, False, -1.0, np.inf), empty, np.ones((1, 2)))])
    assert merged.boxes.shape == (1, 0, 4)
