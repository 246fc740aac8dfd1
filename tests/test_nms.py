"""class_wise_nms: torchvision's and the official code's kept indices, the oracle, jit and vmap."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from atss_jax.geometry.nms import class_wise_nms
from tests.oracles.nms import greedy_nms

GOLDEN = Path(__file__).parent / "golden"


@functools.partial(jax.jit, static_argnames=("iou_threshold", "max_detections"))
def run_nms(boxes, scores, labels, is_valid, iou_threshold, max_detections):
    return class_wise_nms(
        boxes, scores, labels, is_valid,
        iou_threshold=iou_threshold, max_detections=max_detections,
    )  # fmt: skip


def kept_indices(boxes, scores, labels, iou_threshold) -> list[int]:
    """All kept indices; the number of slots is rounded up to save compilations."""
    size = -(-max(len(scores), 1) // 1000) * 1000
    pad = size - len(scores)
    index, is_kept = run_nms(
        np.pad(boxes, ((0, pad), (0, 0))), np.pad(scores, (0, pad)), np.pad(labels, (0, pad)),
        np.arange(size) < len(scores), float(iou_threshold), size,
    )  # fmt: skip
    return np.asarray(index)[np.asarray(is_kept)].tolist()


def random_scene(seed: int, num_boxes: int, num_classes: int):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 50, (num_boxes, 2))], axis=1)
    scores = rng.integers(1, 30, num_boxes) / 30  # many ties
    return (
        boxes.astype(np.float32),
        scores.astype(np.float32),
        rng.integers(0, num_classes, num_boxes),
    )


def test_equals_torchvision(shared):
    golden = np.load(shared / "golden/torchvision/nms.npz")
    cases = sorted({key.split("/")[0] for key in golden})
    assert len(cases) == 20
    for case in cases:
        boxes, scores = golden[f"{case}/boxes"], golden[f"{case}/scores"]
        key = f"{case}/labels"
        labels = golden[key] if key in golden else np.zeros(len(scores), np.int32)
        kept = kept_indices(boxes, scores, labels, golden[f"{case}/iou_threshold"])
        assert kept == golden[f"{case}/keep"].tolist(), case


@pytest.mark.parametrize("case", ["n0", "n1", "n2", "n60", "n300"])
def test_equals_official(case):
    golden = np.load(GOLDEN / "nms_vote.npz")
    boxes = golden[f"{case}/boxes"] + np.array([0, 0, 1, 1], np.float32)  # official boxes: x2 + 1
    scores, labels = golden[f"{case}/scores"], golden[f"{case}/labels"]
    one_class = kept_indices(boxes, scores, np.zeros_like(labels), 0.6)
    assert sorted(one_class) == golden[f"{case}/nms06_keep"].tolist()
    assert sorted(kept_indices(boxes, scores, labels, 0.6)) == (
        golden[f"{case}/ml_nms06_keep"].tolist()
    )


@pytest.mark.parametrize("seed", range(20))
def test_equals_oracle(seed):
    boxes, scores, labels = random_scene(seed, 150, 1 + seed % 4)
    expected = greedy_nms(boxes.tolist(), scores.tolist(), labels.tolist(), 0.6)
    assert kept_indices(boxes, scores, labels, 0.6) == expected


def test_first_detections_only_and_padding():
    boxes, scores, labels = random_scene(99, 150, 3)
    everything = kept_indices(boxes, scores, labels, 0.5)
    is_valid = np.ones(150, bool)
    index, is_kept = run_nms(boxes, scores, labels, is_valid, 0.5, 7)
    assert index.tolist() == everything[:7] and bool(is_kept.all())
    is_valid[everything[0]] = False
    index, _ = run_nms(boxes, scores, labels, is_valid, 0.5, 7)
    assert everything[0] not in index.tolist()


def test_nothing_valid_and_no_boxes():
    boxes, scores, labels = random_scene(3, 150, 3)
    index, is_kept = run_nms(boxes, scores, labels, np.zeros(150, bool), 0.5, 7)
    assert not is_kept.any() and index.tolist() == [0] * 7
    boxes, scores, labels = random_scene(3, 0, 3)
    _, is_kept = run_nms(boxes, scores, labels, np.zeros(0, bool), 0.5, 7)
    assert is_kept.shape == (7,) and not is_kept.any()


def test_vmap_equals_loop():
    scenes = [random_scene(seed, 150, 2) for seed in (4, 5, 6)]
    is_valid = np.arange(150)[None] < np.array([150, 3, 0])[:, None]
    run = functools.partial(run_nms, iou_threshold=0.6, max_detections=7)
    batched = jax.vmap(run)(*(np.stack(x) for x in zip(*scenes, strict=True)), is_valid)
    for i, scene in enumerate(scenes):
        single = run(*scene, is_valid[i])
        np.testing.assert_array_equal(batched[0][i], single[0])
        np.testing.assert_array_equal(batched[1][i], single[1])
