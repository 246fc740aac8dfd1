"""Box arithmetic against golden numbers, scalar formulas and its own inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.geometry import boxes

INCLUSIVE = np.array([0, 0, 1, 1], np.float32)


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 100, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, 80, (count, 2))], axis=1).astype(np.float32)


def test_equal_the_official_coders(shared):
    golden = {
        key: jnp.array(value) for key, value in np.load(shared / "golden" / "coders.npz").items()
    }
    anchors = golden["anchors"] + INCLUSIVE
    deltas = boxes.encode_deltas(golden["boxes"] + INCLUSIVE, anchors)
    np.testing.assert_allclose(deltas, golden["box_encode"], rtol=1e-4, atol=2e-4)
    decoded = boxes.decode_deltas(golden["deltas"], anchors) - INCLUSIVE
    np.testing.assert_allclose(decoded, golden["box_decode"], rtol=1e-4, atol=2e-3)
    points = boxes.box_centers(golden["point_anchors"])
    strides = (golden["point_anchors"][:, 2] - golden["point_anchors"][:, 0] + 1) / 8
    ltrb = boxes.encode_points(golden["point_boxes"], points, strides)
    np.testing.assert_allclose(ltrb, golden["point_encode"], rtol=1e-4, atol=1e-4)
    back = boxes.decode_points(golden["point_preds"], points, strides)
    np.testing.assert_allclose(back, golden["point_decode"], rtol=1e-4, atol=1e-3)
    centerness = boxes.centerness(boxes.box_centers(golden["ctr_anchors"]), golden["ctr_boxes"])
    np.testing.assert_allclose(centerness, golden["centerness"], rtol=1e-4, atol=1e-5)


def test_coders_are_inverses():
    a, b = jnp.array(random_boxes(50)), jnp.array(random_boxes(50, 1))
    np.testing.assert_allclose(boxes.decode_deltas(boxes.encode_deltas(a, b), b), a, atol=1e-3)
    points, strides = boxes.box_centers(b), jnp.full(50, 8.0)
    ltrb = boxes.encode_points(a, points, strides)
    np.testing.assert_allclose(boxes.decode_points(ltrb, points, strides), a, atol=1e-4)


def test_decoding_limits_growth():
    anchor = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    width, height = boxes.box_sizes(boxes.decode_deltas(jnp.array([[0.0, 0, 99, -99]]), anchor))
    np.testing.assert_allclose(width, 1000.0, rtol=1e-5)
    assert float(height[0]) >= 0


def test_overlaps_by_scalar_formulas():
    a, b = random_boxes(30), random_boxes(20, 1)
    pairs = np.asarray(boxes.pairwise_iou(jnp.array(a), jnp.array(b)))
    for i in range(30):
        for j in range(20):
            w = max(0, min(a[i, 2], b[j, 2]) - max(a[i, 0], b[j, 0]))
            h = max(0, min(a[i, 3], b[j, 3]) - max(a[i, 1], b[j, 1]))
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a[i], b[j])]
            assert pairs[i, j] == pytest.approx(w * h / (sum(areas) - w * h), abs=1e-5)
    empty = jnp.array([3.0, 3, 3, 3])
    assert float(boxes.paired_iou(empty, empty)) == 0


def test_giou_is_finite_with_its_gradient():
    pairs = jnp.array([[0.0, 0, 4, 4], [5, 5, 9, 9], [3, 3, 1, 1], [2, 2, 2, 2]])
    target = jnp.array([[0.0, 0, 4, 4]])
    values, gradient = jax.value_and_grad(lambda x: jnp.sum(boxes.paired_giou(x, target)))(pairs)
    assert np.isfinite(values) and np.isfinite(gradient).all()
    giou = boxes.paired_giou(pairs, target)
    np.testing.assert_allclose(giou[0], 1, atol=1e-6)
    np.testing.assert_allclose(giou[1], -(81 - 32) / 81, atol=1e-6)


def test_centerness_is_one_in_the_middle_and_zero_outside():
    box = jnp.array([0.0, 0, 8, 4])
    points = jnp.array([[4.0, 2], [2, 2], [0, 2], [9, 2]])
    np.testing.assert_allclose(boxes.centerness(points, box), [1, np.sqrt(2 / 6), 0, 0], rtol=1e-6)


def test_clip_and_precision():
    clipped = boxes.clip_boxes(jnp.array([[-5.0, 3, 50, 70]]), jnp.array(40.0), jnp.array(30.0))
    np.testing.assert_array_equal(clipped, [[0, 3, 30, 40]])
    assert boxes.box_area(jnp.zeros(4, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert boxes.box_area(jnp.zeros(4, jnp.float64)).dtype == jnp.float64
