"""NMS, hard and soft: kept indices of torchvision and the official code, oracles, jit and vmap."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from atss_jax.geometry.nms import class_wise_nms, class_wise_soft_nms
from tests.oracles.nms import greedy_nms, soft_nms

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


@functools.partial(jax.jit, static_argnames=("kind", "iou_threshold", "max_detections"))
def run_soft(boxes, scores, labels, is_valid, *, kind, iou_threshold=0.3, max_detections=60):
    return class_wise_soft_nms(
        boxes, scores, labels, is_valid, kind=kind, iou_threshold=iou_threshold, sigma=0.5,
        min_score=0.05, max_detections=max_detections,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(10))
def test_soft_equals_oracle(kind, seed):
    """Random scenes with ties, invalid slots, and fewer slots than survivors, or more."""
    boxes, scores, labels = random_scene(seed, 80, 1 + seed % 3)
    boxes[7] = boxes[3]  # twins with one score: the lower index first
    scores[7], labels[7] = scores[3], labels[3]
    boxes[11, 2:] = boxes[11, :2]  # no area: an IoU of 0 / 0
    is_valid = np.random.default_rng(seed).uniform(size=80) < 0.8
    scores[~is_valid] = 2.0  # the best of all, were they there
    valid = np.flatnonzero(is_valid)
    expected = soft_nms(
        boxes[valid].tolist(), scores[valid].tolist(), labels[valid].tolist(),
        kind=kind, iou_threshold=0.3, sigma=0.5, min_score=0.05,
    )  # fmt: skip
    assert len(expected) > 10
    for slots in (9, 80):
        index, found, is_taken = run_soft(
            boxes, scores, labels, is_valid, kind=kind, max_detections=slots
        )
        count = min(slots, len(expected))
        assert is_taken.tolist() == [True] * count + [False] * (slots - count)
        # Lowered scores of float32 and float64 may tie differently: compare by score, then index.
        np.testing.assert_allclose(found[:count], [s for _, s in expected[:count]], atol=1e-5)
        same = [valid[i] == j for (i, _), j in zip(expected, index[:count].tolist(), strict=False)]
        assert np.mean(same) > 0.9 and same[0]


def test_soft_by_hand():
    """Half covered (IoU 0.5): linear 1 - IoU, gaussian exp(-IoU^2 / sigma); others untouched."""
    boxes = np.array([[0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 4], [50, 0, 58, 8]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1], np.float32), np.array([0, 0, 1, 0])
    everywhere = np.ones(4, bool)
    for kind, lowered in (("linear", 0.8 * 0.5), ("gaussian", 0.8 * np.exp(-0.25 / 0.5))):
        index, found, _ = run_soft(boxes, scores, labels, everywhere, kind=kind, max_detections=4)
        assert index.tolist() == [0, 2, 1, 3]
        np.testing.assert_allclose(found, [0.9, 0.7, lowered, 0.1], rtol=1e-6)
    # Linear lowers above the threshold only.
    _, found, _ = run_soft(
        boxes, scores, labels, everywhere, kind="linear", iou_threshold=0.5, max_detections=4
    )
    np.testing.assert_allclose(found, [0.9, 0.8, 0.7, 0.1])


def test_soft_of_nothing():
    boxes, scores, labels = random_scene(3, 80, 3)
    nothing = run_soft(boxes, scores, labels, np.zeros(80, bool), kind="linear")
    assert not nothing[2].any() and not nothing[1].any()
    boxes, scores, labels = random_scene(3, 0, 3)
    assert not run_soft(boxes, scores, labels, np.zeros(0, bool), kind="linear")[2].any()
    with pytest.raises(ValueError, match="kind='cubic'"):
        run_soft(boxes, scores, labels, np.zeros(0, bool), kind="cubic")
