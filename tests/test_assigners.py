"""Assigners against plain NumPy, by hand, and what must not matter to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_jax.assigners import (
    ASSIGNERS,
    align_tasks,
    assign_atss,
    assign_task_aligned,
    atss,
    iou_thresholds,
    select_candidates,
)
from atss_jax.assigners.config import AssignerConfig
from atss_jax.assigners.registry import make_assigner, needs_predictions
from atss_jax.assigners.spatial_scale import SCALE_RANGES
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth, Predictions
from tests.oracles import assigners as oracle
from tests.scenes import ground_truth, random_boxes, stack

BATCH = 36
NUM_SLOTS = 6
GRIDS = [
    (9, {"image_shape": (96, 160)}),
    (9, {"image_shape": (32, 256)}),  # P5..P7 are one row high
    (1, {"image_shape": (128, 64)}),
]
MORE_GRIDS = [
    (25, {"image_shape": (64, 96)}),  # no level holds k but P3
    (3, {"image_shape": (160, 96), "center_offset": 0.0}),
    (17, {"image_shape": (64, 192), "aspect_ratios": (0.5, 2.0), "offset_px": 0.5}),
    (12, {"image_shape": (96, 128), "aspect_ratios": (0.5, 1.0, 2.0)}),
    (5, {"image_shape": (64, 128), "aspect_ratios": (0.5, 1.0, 2.0), "scales_per_octave": 3}),
]


def levels_of(grid):
    return [(s, s + n) for s, n in zip(grid.level_starts, grid.num_per_level, strict=True)]


@functools.lru_cache
def jitted(name, grid, **keywords):
    return jax.jit(jax.vmap(functools.partial(ASSIGNERS[name], grid, **keywords)))


def random_scenes(rng, grid, count):
    """Image sizes up to the bucket, often much smaller; boxes; both stacked for `vmap`."""
    shape = np.array(grid.image_shape)
    sizes = np.maximum(2, (shape * rng.uniform(0, 1, (count, 2)) ** 0.5)).astype(np.int32)
    numbers = rng.integers(0, NUM_SLOTS + 1, count)
    boxes = [
        random_boxes(rng, n, *size, whole=bool(rng.random() < 0.5)) if n else np.zeros((0, 4))
        for n, size in zip(numbers, sizes, strict=True)
    ]
    return jnp.array(sizes), boxes, stack([ground_truth(b, NUM_SLOTS) for b in boxes])


def assert_equals_oracle(got, expected, where):
    gt_index, label = expected[:2]
    np.testing.assert_array_equal(got.is_positive, label == 1, err_msg=where)
    np.testing.assert_array_equal(got.is_ignored, label == -1, err_msg=where)
    positive = label == 1
    np.testing.assert_array_equal(got.gt_index[positive], gt_index[positive], err_msg=where)


@pytest.mark.parametrize(
    ("k", "settings_of_grid"),
    GRIDS + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_GRIDS],
)
@settings(max_examples=10, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_atss_equals_algorithm_1(k, settings_of_grid, seed):
    """8 grids x 10 examples x 36 scenes, of which at least 26: over 2,000 compared in all."""
    rng = np.random.default_rng(seed)
    grid = AnchorGrid(**settings_of_grid)
    sizes, boxes, gt = random_scenes(rng, grid, BATCH)
    found = jax.device_get(jitted("atss", grid, candidates_per_level=k)(sizes, gt))
    own_masks = np.array(own_mask_of(grid)(sizes))
    num_sure = 0
    for i in range(BATCH):
        expected = oracle.atss(
            grid.boxes(), levels_of(grid), own_masks[i], boxes[i], k=k, a=grid.num_per_location
        )
        if expected[-1] > 2e-6:  # no decision within rounding
            num_sure += 1
            got = type(found)(*(field[i] for field in found))
            assert_equals_oracle(got, expected, f"seed {seed}, scene {i}")
    assert num_sure >= 26


@functools.lru_cache
def own_mask_of(grid):
    return jax.jit(jax.vmap(grid.own_mask))


@pytest.mark.parametrize("name", ["max_iou", "max_iou_in_box", "fcos", "fcos_center", "top_k_iou"])
def test_other_assigners_equal_their_definitions(name):
    rng = np.random.default_rng(7)
    grid = AnchorGrid((96, 160))
    sizes, boxes, gt = random_scenes(rng, grid, BATCH)
    anchors, strides = grid.boxes(), grid.anchor_strides()
    ranges = ((-1.0, 30.0), (30.0, 60.0), (60.0, 90.0), (90.0, 120.0), (120.0, 1e8))
    assigner, keywords, expect = {
        "max_iou": ("max_iou", {}, lambda own, b: oracle.max_iou(anchors, own, b)),
        "max_iou_in_box": (
            "max_iou",
            {"positives_in_box": True},
            lambda own, b: oracle.max_iou(anchors, own, b, positives_in_box=True),
        ),
        "fcos": (
            "spatial_scale",
            {"scale_ranges": ranges},
            lambda own, b: oracle.spatial_scale(anchors, strides, own, b, ranges=ranges),
        ),
        "fcos_center": (
            "spatial_scale",
            {"center_radius": 1.5},
            lambda own, b: oracle.spatial_scale(
                anchors, strides, own, b, ranges=SCALE_RANGES, center_radius=1.5
            ),
        ),
        "top_k_iou": (
            "top_k_iou",
            {"candidates": 7},
            lambda own, b: oracle.top_k_iou(anchors, own, b, k=7),
        ),
    }[name]
    found = jax.device_get(jitted(assigner, grid, **keywords)(sizes, gt))
    own_masks = np.array(own_mask_of(grid)(sizes))
    num_sure = 0
    for i in range(BATCH):
        got = type(found)(*(field[i] for field in found))
        if len(boxes[i]) == 0:
            assert not got.is_positive.any()
            np.testing.assert_array_equal(got.is_ignored, ~own_masks[i])
            continue
        expected = expect(own_masks[i], boxes[i])
        if len(expected) == 2 or expected[2] > 2e-6:  # no decision within rounding
            num_sure += 1
            assert_equals_oracle(got, expected, f"{name}, scene {i}")
    assert num_sure > BATCH // 3


@pytest.mark.parametrize("name", ASSIGNERS)
def test_padding_order_and_bucket_do_not_matter(name):
    rng = np.random.default_rng(3)
    grid, larger = AnchorGrid((96, 128)), AnchorGrid((128, 160))
    sizes, boxes, gt = random_scenes(rng, grid, 8)
    base = jax.device_get(jitted(name, grid)(sizes, gt))

    garbage = gt._replace(boxes=jnp.where(gt.is_valid[..., None], gt.boxes, 5.0))
    for a, b in zip(base, jax.device_get(jitted(name, grid)(sizes, garbage)), strict=True):
        np.testing.assert_array_equal(a, b)

    flipped = GroundTruth(*(field[:, ::-1] for field in gt))
    mirror = jax.device_get(jitted(name, grid)(sizes, flipped))
    np.testing.assert_array_equal(base.is_positive, mirror.is_positive)
    in_larger = jax.device_get(jitted(name, larger)(sizes, gt))
    own, own_larger = (np.array(own_mask_of(g)(sizes)) for g in (grid, larger))
    assert np.all(in_larger.is_ignored[~own_larger])
    for i in range(8):
        twice = len(boxes[i]) > 1 and np.all(boxes[i][0] == boxes[i][-1])
        positive = base.is_positive[i]
        if not twice:  # of equal objects the first wins, in either order
            np.testing.assert_array_equal(
                base.gt_index[i][positive], NUM_SLOTS - 1 - mirror.gt_index[i][positive]
            )
        for field in base._fields:
            a, b = getattr(base, field)[i], getattr(in_larger, field)[i]
            np.testing.assert_array_equal(a[own[i]], b[own_larger[i]], err_msg=field)


def test_by_hand():
    """One 64 px object centred on a P3 anchor: its best anchor is that one, with IoU 1."""
    grid = AnchorGrid((96, 160))
    gt = ground_truth(np.array([[28.0, 12, 92, 76]]), 2)
    size = jnp.array([96, 160])
    candidates = jax.jit(functools.partial(select_candidates, grid))(size, gt)
    first = int(candidates.anchor_index[0, 0])
    np.testing.assert_array_equal(grid.boxes()[first], [28, 12, 92, 76])
    assert float(candidates.iou[0, 0]) == 1.0
    near = np.sort(np.asarray(candidates.iou[:9, 0]))
    side, corner = 64 * 56 / (2 * 64**2 - 64 * 56), 56 * 56 / (2 * 64**2 - 56 * 56)
    np.testing.assert_allclose(near, [corner] * 4 + [side] * 4 + [1], rtol=1e-6)
    assert int(candidates.is_candidate[:, 0].sum()) == 9 + 9 + 9 + 6 + 2
    assignment = jax.jit(functools.partial(assign_atss, grid))(size, gt)
    rows, columns = np.divmod(np.flatnonzero(assignment.is_positive), 20)
    assert set(rows) == {4, 5, 6} and set(columns) == {6, 7, 8}
    np.testing.assert_array_equal(iou_thresholds(candidates).threshold[1], 0)


def test_fallback_gives_small_objects_an_anchor():
    grid = AnchorGrid((64, 96))
    boxes = np.array([[9.0, 9, 11, 11], [25, 9, 27, 11], [50, 30, 90, 60]], np.float32)
    scene = jnp.array([[64, 96]]), stack([ground_truth(boxes, 4)])
    without = jax.device_get(jitted("atss", grid)(*scene))
    found = jax.device_get(jitted("atss", grid, fallback=True)(*scene))
    assert set(without.gt_index[without.is_positive]) == {2}
    added = found.is_positive & ~without.is_positive
    # The nearest of the anchors that contain the small boxes: centres (12, 12) and (28, 12).
    np.testing.assert_array_equal(np.flatnonzero(added[0]), [13, 15])
    np.testing.assert_array_equal(found.gt_index[added], [0, 1])
    np.testing.assert_array_equal(found.gt_index[~added], without.gt_index[~added])


def test_blocks_of_objects_do_not_matter(monkeypatch):
    grid = AnchorGrid((96, 160))
    sizes, _, gt = random_scenes(np.random.default_rng(11), grid, BATCH)
    whole = jitted("atss", grid, candidates_per_level=9)(sizes, gt)
    monkeypatch.setattr(atss, "BLOCK", 4)
    in_blocks = jax.jit(jax.vmap(functools.partial(assign_atss, grid)))(sizes, gt)
    for a, b in zip(whole, in_blocks, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_jit_and_eager_agree():
    grid = AnchorGrid((64, 96))
    sizes, _, gt = random_scenes(np.random.default_rng(5), grid, 1)
    one = GroundTruth(*(field[0] for field in gt))
    for a, b in zip(assign_atss(grid, sizes[0], one), jitted("atss", grid)(sizes, gt), strict=True):
        np.testing.assert_array_equal(a, b[0])


def test_bad_arguments_name_the_value():
    grid, gt = AnchorGrid((32, 64)), ground_truth(np.zeros((0, 4)), 1)
    size = jnp.array([32, 64])
    with pytest.raises(ValueError, match="candidates_per_level=0"):
        assign_atss(grid, size, gt, candidates_per_level=0)
    with pytest.raises(ValueError, match="candidates=0"):
        ASSIGNERS["top_k_iou"](grid, size, gt, candidates=0)
    with pytest.raises(ValueError, match="scale_ranges"):
        ASSIGNERS["spatial_scale"](grid, size, gt, scale_ranges=((0.0, 1.0),))


def random_predictions(rng, grid, num_classes=4):
    """Boxes around the anchors; some scores are 0."""
    anchors = grid.boxes()
    sides = np.tile(anchors[:, 2:] - anchors[:, :2], 2)
    boxes = anchors + rng.normal(0, 0.15, anchors.shape) * sides
    scores = rng.uniform(0, 1, (len(anchors), num_classes)) ** 3
    scores[rng.random(scores.shape) < 0.1] = 0
    return Predictions(jnp.asarray(scores, jnp.float32), jnp.asarray(boxes, jnp.float32))


@pytest.mark.parametrize("top_k, alpha, beta", [(13, 1.0, 6.0), (4, 0.5, 2.0)])
def test_task_aligned_equals_the_loop(top_k, alpha, beta):
    rng = np.random.default_rng(top_k)
    grid, words = AnchorGrid((96, 160)), {"top_k": top_k, "alpha": alpha, "beta": beta}
    sizes, boxes, gt = random_scenes(rng, grid, 12)
    gt = gt._replace(labels=jnp.asarray(rng.integers(0, 4, gt.labels.shape), gt.labels.dtype))
    many = [random_predictions(rng, grid) for _ in boxes]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
    align = jax.jit(jax.vmap(functools.partial(align_tasks, grid, **words)))
    found = jax.device_get(align(sizes, gt, stacked))
    total = 0
    for i, own_boxes in enumerate(boxes):
        own = np.asarray(grid.own_mask(sizes[i]))
        labels = np.asarray(gt.labels[i])
        kept = np.asarray(gt.boxes[i])[: len(own_boxes)]
        gt_index, label, metric = oracle.task_aligned(
            grid.boxes(), own, kept, labels, many[i].scores, np.asarray(many[i].boxes), **words
        )
        got = jax.tree.map(lambda x, i=i: x[i], found)
        assert_equals_oracle(got.assignment, (gt_index, label), f"scene {i}")
        np.testing.assert_allclose(got.metric, metric, rtol=1e-4, atol=1e-9)
        total += (label == 1).sum()
    assert total > 15


def test_task_aligned_equals_mmdetection(shared):
    """All settings of all files; values were computed in float64 there."""
    total = 0
    for path in sorted((shared / "golden" / "beyond").glob("tal_*.npz")):
        golden = np.load(path)
        size = golden["image_hw"]
        height, width = (int(-(-s // 32) * 32) for s in size)
        grid = AnchorGrid((height, width))
        np.testing.assert_array_equal(grid.boxes(), golden["priors"])
        gt = ground_truth(golden["gt_boxes"], 32)
        count = len(golden["gt_labels"])
        gt = gt._replace(
            labels=jnp.asarray(np.pad(golden["gt_labels"], (0, 32 - count)), jnp.int32)
        )
        predictions = Predictions(jnp.asarray(golden["scores"]), jnp.asarray(golden["decoded"]))
        for words in {key.split("/")[0] for key in golden.files if "/" in key}:
            top_k, alpha, beta = (float(word.lstrip("topkalhbe")) for word in words.split("_"))
            found = align_tasks(
                grid, jnp.asarray(size, jnp.int32), gt, predictions,
                top_k=int(top_k), alpha=alpha, beta=beta,
            )  # fmt: skip
            owner = golden[f"{words}/gt_inds"]
            positive = owner > 0
            np.testing.assert_array_equal(found.assignment.is_positive, positive, f"{path} {words}")
            np.testing.assert_array_equal(found.assignment.gt_index[positive] + 1, owner[positive])
            np.testing.assert_allclose(
                found.metric[positive], golden[f"{words}/assign_metrics"][positive], rtol=1e-4
            )
            np.testing.assert_allclose(
                found.iou[positive], golden[f"{words}/max_overlaps"][positive], rtol=1e-4
            )
            total += positive.sum()
    assert total > 100


def test_an_anchor_claimed_twice_goes_to_the_higher_iou_though_another_object_fits_better():
    grid = AnchorGrid((64, 64))
    anchor = 27  # on P3
    x, y = grid.centers()[anchor]
    around = np.array([x, y, x, y])
    boxes = np.array([[-20.0, -20, 20, 20], [-20, -20, 20, 24]]) + around  # IoU 1 and 0.91
    gt = ground_truth(boxes, 2)._replace(labels=jnp.array([0, 1]))
    scores = np.zeros((grid.num_anchors, 2), np.float32)
    scores[anchor] = 0.1, 0.9  # alignment 0.1 and 0.51
    predicted = np.tile(boxes[:1], (grid.num_anchors, 1)).astype(np.float32)
    predictions = Predictions(jnp.asarray(scores), jnp.asarray(predicted))
    found = align_tasks(grid, jnp.array([64, 64]), gt, predictions)
    assert np.flatnonzero(found.assignment.is_positive).tolist() == [anchor]
    assert int(found.assignment.gt_index[anchor]) == 0
    np.testing.assert_allclose([found.iou[anchor], found.metric[anchor]], [1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(("distance", "is_inside"), [(0.009, False), (0.011, True)])
def test_a_centre_on_the_edge_of_its_object_is_outside(distance, is_inside):
    grid = AnchorGrid((64, 64))
    anchor = 27
    x, y = grid.centers()[anchor]
    gt = ground_truth(np.array([[x - distance, y - 20, x + 20, y + 20]]), 1)
    scores = np.zeros((grid.num_anchors, 5), np.float32)
    scores[anchor] = 0.5
    boxes = jnp.tile(gt.boxes, (grid.num_anchors, 1))
    predictions = Predictions(jnp.asarray(scores), boxes)
    found = assign_task_aligned(grid, jnp.array([64, 64]), gt, predictions)
    assert bool(found.is_positive.any()) == bool(found.is_positive[anchor]) == is_inside


def test_task_aligned_of_padding_and_bad_predictions():
    grid, size = AnchorGrid((64, 64)), jnp.array([64, 64])
    predictions = random_predictions(np.random.default_rng(0), grid)
    padding = GroundTruth(jnp.full((2, 4), jnp.nan), jnp.full(2, 99), jnp.zeros(2, bool))
    assert not assign_task_aligned(grid, size, padding, predictions).is_positive.any()
    gt = ground_truth(np.array([[8.0, 8.0, 50.0, 50.0]]), 2)
    broken = predictions._replace(scores=predictions.scores * jnp.nan)
    assert not assign_task_aligned(grid, size, gt, broken).is_positive.any()
    with pytest.raises(ValueError, match="top_k=0"):
        assign_task_aligned(grid, size, gt, predictions, top_k=0)


def test_only_task_aligned_needs_predictions():
    assert not any(needs_predictions(assign) for assign in ASSIGNERS.values())
    config = AssignerConfig(name="task_aligned", alignment_top_k=1)
    assign = make_assigner(config)
    assert needs_predictions(assign)
    grid = AnchorGrid((64, 64))
    gt = ground_truth(np.array([[8.0, 8.0, 50.0, 50.0]]), 2)
    predictions = Predictions(
        jnp.full((grid.num_anchors, 30), 0.5), jnp.asarray(grid.boxes(), jnp.float32)
    )
    found = assign(grid, jnp.array([64, 64]), gt, predictions)
    assert int(found.is_positive.sum()) == 1
