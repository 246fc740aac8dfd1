"""The grid against the official and mmdetection's anchors, and an image's own part of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.geometry.anchors import AnchorGrid
from tests.test_golden_assignment import GRIDS

# Official boxes are inclusive: (x1, y1, x2 + 1, y2 + 1) is ours.
INCLUSIVE = np.array([0, 0, 1, 1], np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_equal_the_official_anchors(name, shared):
    golden = np.load(shared / "golden" / "anchors.npz")
    keys = [key for key in golden if key.startswith(f"{name}__")]
    assert keys
    for key in keys:
        height, width = (int(side) for side in key.split("__")[1].split("x"))
        grid = AnchorGrid((height, width), offset_px=0.5, **GRIDS[name])
        np.testing.assert_allclose(grid.boxes(), golden[key] + INCLUSIVE, atol=1e-3, rtol=1e-6)
        shapes = golden[f"shapes__{height}x{width}"]
        np.testing.assert_array_equal(grid.level_shapes, shapes)


def test_mmdetection_grid(shared):
    golden = np.load(shared / "golden" / "anchors.npz")
    for key in golden:
        if key.startswith("mmdet__A1_s8_r1__"):
            height, width = (int(side) for side in key.rsplit("__", 1)[1].split("x"))
            grid = AnchorGrid((height, width), center_offset=0.0)
            np.testing.assert_array_equal(grid.boxes(), golden[key])


def test_order_is_level_row_column_anchor():
    grid = AnchorGrid((64, 96), aspect_ratios=(0.5, 1.0), scales_per_octave=2)
    assert grid.num_anchors == 4 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1)
    np.testing.assert_array_equal(grid.centers()[:5], [[4, 4]] * 4 + [[12, 4]])
    np.testing.assert_array_equal(grid.centers()[4 * 12], [4, 12])
    assert grid.level_starts == (0, 384, 480, 504, 512)
    np.testing.assert_array_equal(grid.anchor_strides()[[0, 384, 480, 504, 512]], grid.strides)
    sides = grid.boxes()[:4, 2:] - grid.boxes()[:4, :2]
    np.testing.assert_allclose(sides[:2] / sides[0], [[1, 1], [2**0.5, 2**0.5]], rtol=1e-6)
    np.testing.assert_allclose(sides[2], [64, 64])
    np.testing.assert_allclose(sides[0], [11 * 8, 6 * 8])  # rounded as in the official code


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 96), (100, 31)])
def test_an_image_owns_the_anchors_of_its_own_bucket(size):
    bucket = AnchorGrid((128, 160), aspect_ratios=(0.5, 1.0))
    alone = bucket.with_image_shape(tuple(-(-side // 32) * 32 for side in size))
    mask = np.asarray(jax.jit(bucket.own_mask)(jnp.array(size)))
    np.testing.assert_array_equal(bucket.boxes()[mask], alone.boxes())
    np.testing.assert_array_equal(bucket.own_level_shapes(jnp.array(size)), alone.level_shapes)


def test_is_hashable_and_its_arrays_are_read_only():
    assert hash(AnchorGrid((64, 96))) == hash(AnchorGrid((64, 96)))
    with pytest.raises(ValueError, match="read-only"):
        AnchorGrid((64, 96)).boxes()[0] = 0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"image_shape": (60, 96)}, "60, 96"),
        ({"image_shape": (64, 96), "anchor_scale": 0.0}, "anchor_scale=0.0"),
        ({"image_shape": (64, 96), "aspect_ratios": ()}, "aspect_ratios"),
        ({"image_shape": (64, 96), "strides": (8, 16)}, "strides"),
    ],
)
def test_bad_grids_name_the_value(keywords, message):
    with pytest.raises(ValueError, match=message):
        AnchorGrid(**keywords)
