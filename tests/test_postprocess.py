"""postprocess: the official code's detections in 7 settings, the oracle, buckets, float types."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.evaluation.config import EvalConfig
from atss_jax.evaluation.postprocess import (
    PostprocessSettings,
    make_settings,
    postprocess,
    postprocess_batch,
    select_top_pairs,
)
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import HeadOutputs
from tests.oracles.nms import postprocess as oracle_postprocess

GOLDEN = Path(__file__).parent / "golden"
UNIT_SCALE = np.ones(2, np.float32)
RETINANET = {"aspect_ratios": (0.5, 1.0, 2.0), "scales_per_octave": 3, "anchor_scale": 4.0}
CASES = {  # name -> (grid settings, post-processing settings)
    "atss_box": ({}, {}),
    "atss_box_dense": ({}, {}),
    "atss_box_sparse": ({}, {}),
    "atss_box_a3": ({"aspect_ratios": (0.5, 1.0, 2.0)}, {}),
    "atss_point": ({}, {"regression": "point"}),
    "fcos": ({}, {"regression": "point"}),
    "retinanet": (RETINANET, {"nms_iou": 0.4, "score": "cls"}),
}


def load_outputs(golden, grid: AnchorGrid, case: str) -> HeadOutputs:
    """Head outputs of a golden file in our layout and coordinates, for the batch of two."""

    def maps(name: str, channels: int) -> tuple:
        per_level = [golden[f"{name}_P{level}"] for level in range(3, 8)]
        return tuple(
            x.transpose(0, 2, 3, 1).reshape(
                x.shape[0], *x.shape[2:], grid.num_per_location, channels
            )
            for x in per_level
        )

    num_classes = golden["cls_P3"].shape[1] // grid.num_per_location
    regression = maps("reg", 4)
    if case == "fcos":  # px; ours are strides
        regression = tuple(x / s for x, s in zip(regression, grid.strides, strict=True))
    if case in ("fcos", "atss_point"):
        # Official distances run to inclusive edges: half a pixel less than ours on every side.
        regression = tuple(x + 0.5 / s for x, s in zip(regression, grid.strides, strict=True))
    centerness = None
    if "ctr_P3" in golden:
        centerness = tuple(x[..., 0] for x in maps("ctr", 1))
    outputs = HeadOutputs(maps("cls", num_classes), regression, centerness)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), outputs)


@pytest.mark.parametrize("case", CASES)
def test_equals_official(case, request):
    folder = GOLDEN
    if not (folder / f"post_{case}.npz").exists():
        folder = request.getfixturevalue("shared") / "golden"
    golden = np.load(folder / f"post_{case}.npz")
    grid_settings, settings = CASES[case]
    height, width = np.array(golden["cls_P3"].shape[2:]) * 8
    grid = AnchorGrid((int(height), int(width)), offset_px=0.5, **grid_settings)
    run = jax.jit(functools.partial(postprocess_batch, grid=grid, **settings))
    found = run(
        load_outputs(golden, grid, case), image_size=golden["image_hw"], scale=np.ones((2, 2))
    )
    for i in (0, 1):
        labels = golden[f"det_labels_{i}"] - 1
        valid = np.asarray(found.is_valid[i])
        assert valid.sum() == len(labels)
        np.testing.assert_array_equal(np.asarray(found.labels[i])[valid], labels)
        np.testing.assert_allclose(
            np.asarray(found.scores[i])[valid], golden[f"det_scores_{i}"], rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(
            np.asarray(found.boxes[i])[valid],
            golden[f"det_boxes_{i}"] + np.array([0, 0, 1, 1]),
            rtol=0,
            atol=1e-2,
        )


def random_outputs(seed: int, grid: AnchorGrid, num_classes: int, cls_mean: float) -> HeadOutputs:
    rng = np.random.default_rng(seed)

    def draw(mean, *tail):
        return tuple(
            jnp.asarray(rng.normal(mean, 2.0, (*shape, grid.num_per_location, *tail)), jnp.float32)
            for shape in grid.level_shapes
        )

    return HeadOutputs(draw(cls_mean, num_classes), draw(0.0, 4), draw(0.0))


SMALL_GRID = AnchorGrid((96, 128))
SMALL_SETTINGS = {"pre_nms_top_k": 30, "max_detections": 25, "score_threshold": 0.1}
run_small = jax.jit(functools.partial(postprocess, grid=SMALL_GRID, **SMALL_SETTINGS))


@pytest.mark.parametrize("seed", range(4))
def test_equals_oracle(seed):
    image_size, scale = np.array([70, 123], np.int32), np.array([0.5, 0.8], np.float32)
    outputs = random_outputs(seed, SMALL_GRID, 3, -1.0)
    found = run_small(outputs, image_size=image_size, scale=scale)

    def flat(maps, *tail):
        return np.concatenate([np.asarray(x, np.float64).reshape(-1, *tail) for x in maps])

    assert outputs.centerness_logits is not None
    probabilities = 1 / (1 + np.exp(-flat(outputs.cls_logits, 3)))
    probabilities[~np.asarray(SMALL_GRID.own_mask(jnp.asarray(image_size)))] = 0
    centerness = 1 / (1 + np.exp(-flat(outputs.centerness_logits)))
    deltas = flat(outputs.box_regression, 4) / [10, 10, 5, 5]
    anchors = SMALL_GRID.boxes().astype(np.float64)
    sides = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :2] * sides
    half = sides * np.exp(deltas[:, 2:]) / 2
    boxes = np.concatenate(
        [np.clip(center - half, 0, [122, 69]), np.clip(center + half, 1, [123, 70])], axis=1
    )
    expected = oracle_postprocess(
        probabilities, centerness, boxes, SMALL_GRID.num_per_level,
        threshold=0.1, top_k=30, nms_iou=0.6, max_detections=25,
    )  # fmt: skip
    assert int(found.is_valid.sum()) == len(expected) == 25
    np.testing.assert_array_equal(found.labels, [label for _, _, label in expected])
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=1e-6)
    expected_boxes = np.array([box for _, box, _ in expected]) / [0.8, 0.5, 0.8, 0.5]
    np.testing.assert_allclose(found.boxes, expected_boxes, atol=1e-3)


@pytest.mark.parametrize("num_kept", [1, 7, 50, 200])
def test_selection_equals_one_sort(num_kept):
    """The two selections give what one sort of all pairs gives, ties included."""
    rng = np.random.default_rng(num_kept)
    cls_logits = rng.integers(-3, 3, (60, 5)).astype(np.float32)  # many equal pairs
    is_own = rng.random(60) < 0.8
    centerness_logits = np.zeros(60, np.float32)
    select = jax.jit(functools.partial(select_top_pairs, score_threshold=0.2, top_k=num_kept))
    ranks, anchors, classes = select(cls_logits, centerness_logits, is_own)
    probability = 1 / (1 + np.exp(-cls_logits))
    all_ranks = np.where(is_own[:, None] & (probability > 0.2), probability / 2, -1).ravel()
    order = np.argsort(-all_ranks, kind="stable")[:num_kept]
    np.testing.assert_allclose(ranks, all_ranks[order], atol=1e-6)
    is_candidate = all_ranks[order] > 0
    np.testing.assert_array_equal((anchors * 5 + classes)[is_candidate], order[is_candidate])
    assert is_candidate.any()


def test_bucket_does_not_matter():
    """More padding adds anchors that must stay silent, whatever the network says there."""
    large_grid = AnchorGrid((160, 224))
    outputs = random_outputs(5, SMALL_GRID, 3, -1.0)
    loud = random_outputs(6, large_grid, 3, 9.0)
    padded = jax.tree.map(lambda large, small: _paste(large, small), loud, outputs)
    image_size = np.array([96, 128], np.int32)
    small = run_small(outputs, image_size=image_size, scale=UNIT_SCALE)
    run_large = jax.jit(functools.partial(postprocess, grid=large_grid, **SMALL_SETTINGS))
    large = run_large(padded, image_size=image_size, scale=UNIT_SCALE)
    for ours, theirs in zip(small, large, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _paste(large, small):
    return large.at[: small.shape[0], : small.shape[1]].set(small)


def test_batch_equals_single_images():
    images = [random_outputs(seed, SMALL_GRID, 3, -3.0) for seed in (7, 8)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *images)
    sizes = np.array([[96, 100], [33, 128]], np.int32)
    run = jax.jit(functools.partial(postprocess_batch, grid=SMALL_GRID, **SMALL_SETTINGS))
    batched = run(stacked, image_size=sizes, scale=np.ones((2, 2), np.float32))
    for i, image in enumerate(images):
        single = run_small(image, image_size=sizes[i], scale=UNIT_SCALE)
        jax.tree.map(
            lambda b, s, i=i: np.testing.assert_allclose(b[i], s, rtol=1e-5, atol=1e-4),
            batched,
            single,
        )


def test_silence_and_bfloat16():
    silent = jax.tree.map(jnp.asarray, random_outputs(9, SMALL_GRID, 3, -90.0))
    image_size = np.array([96, 128], np.int32)
    found = run_small(silent, image_size=image_size, scale=UNIT_SCALE)
    assert not found.is_valid.any() and not found.boxes.any() and not found.scores.any()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_outputs(9, SMALL_GRID, 3, 0.0))
    found = run_small(half, image_size=image_size, scale=UNIT_SCALE)
    assert found.boxes.dtype == found.scores.dtype == jnp.float32 and bool(found.is_valid.all())


def test_scores():
    """The product is the square of the root; the class score ignores centerness altogether."""
    outputs = random_outputs(11, SMALL_GRID, 3, -1.0)
    image_size = np.array([96, 128], np.int32)
    root = run_small(outputs, image_size=image_size, scale=UNIT_SCALE)

    def run(score, outputs):
        step = jax.jit(functools.partial(postprocess, grid=SMALL_GRID, score=score))
        return step(outputs, image_size=image_size, scale=UNIT_SCALE)

    product = run("product", outputs)
    np.testing.assert_allclose(product.scores[:25], root.scores**2, rtol=1e-5)
    without = outputs._replace(centerness_logits=None)
    for ours, theirs in zip(run("cls", outputs), run("sqrt", without), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="score='best': must be one of sqrt, product, cls"):
        run("best", outputs)


def test_unknown_regression():
    with pytest.raises(ValueError, match="regression='corner': must be"):
        postprocess(
            random_outputs(0, SMALL_GRID, 3, 0.0), SMALL_GRID, jnp.array([96, 128]),
            jnp.ones(2), regression="corner",
        )  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["cls_logits", "box_regression", "centerness_logits"])
def test_numbers_that_are_not_finite_are_no_detections(field, value):
    """They vanish, and what the other anchors say stays as it is."""
    image_size = np.array([96, 128], np.int32)
    outputs = random_outputs(5, SMALL_GRID, 3, -1.0)
    settings = {**SMALL_SETTINGS, "nms_iou": 1.0, "max_detections": 200}
    run = jax.jit(functools.partial(postprocess, grid=SMALL_GRID, **settings))
    maps = list(getattr(outputs, field))
    quarter = np.zeros(maps[0].shape, bool)
    quarter[: maps[0].shape[0] // 2, : maps[0].shape[1] // 2] = True
    maps[0] = jnp.where(quarter, value, maps[0])
    broken = outputs._replace(**{field: tuple(maps)})
    found = run(broken, image_size=image_size, scale=UNIT_SCALE)
    valid = np.asarray(found.is_valid)
    assert valid.sum() > 50
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    # The same without those anchors' candidates: their class is never found.
    cls_logits = list(outputs.cls_logits)
    gone = quarter.reshape(*quarter.shape[:3], -1)[..., :1]
    cls_logits[0] = jnp.where(gone, -100.0, cls_logits[0])
    silent = outputs._replace(cls_logits=tuple(cls_logits))
    without = run(silent, image_size=image_size, scale=UNIT_SCALE)
    if np.isnan(value) and field != "box_regression":  # box candidates still took places of top_k
        for a, b in zip(found, without, strict=True):
            np.testing.assert_array_equal(a, b)


def test_soft_nms_lowers_scores():
    image_size = np.array([96, 128], np.int32)
    outputs = random_outputs(6, SMALL_GRID, 3, -1.0)

    def run(**settings):
        run = functools.partial(postprocess, grid=SMALL_GRID, **{**SMALL_SETTINGS, **settings})
        return jax.device_get(jax.jit(run)(outputs, image_size=image_size, scale=UNIT_SCALE))

    hard, everything = run(), run(nms_iou=1.0)
    for nms in ("soft_linear", "soft_gaussian"):
        soft = run(nms=nms)
        scores = soft.scores[soft.is_valid]
        assert (np.diff(scores) <= 0).all() and scores[0] == hard.scores[0]
        np.testing.assert_array_equal(soft.boxes[0], hard.boxes[0])
        assert (scores <= everything.scores[: len(scores)]).all() and scores.sum() > 0
        assert (scores < everything.scores[: len(scores)]).any()
    with pytest.raises(ValueError, match="nms='softer'"):
        run(nms="softer")


def test_settings_name_the_keywords():
    """`PostprocessSettings` has the names and defaults of `postprocess`, and of the recipe."""
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(postprocess).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert PostprocessSettings()._asdict() == keywords
    assert make_settings(EvalConfig(), "box") == PostprocessSettings()
