"""Assigners against plain NumPy, by hand, and what must not matter to them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_jax.assigners import ASSIGNERS, assign_atss, atss, iou_thresholds, select_candidates
from atss_jax.assigners.spatial_scale import SCALE_RANGES
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth
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
