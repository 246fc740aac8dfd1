"""Pixels and boxes move together."""

import cv2
import numpy as np
import pytest

from atss_jax.data import images
from atss_jax.data.images import (
    Placement,
    move_boxes,
    official_resized_size,
    resized_size,
    write_row,
)

CROPS = [(0.0, 0.0), (0.3, 0.8), (0.999, 0.999)]


def test_resized_size_is_the_official_one_within_the_limit(shared):
    golden = np.load(shared / "golden" / "misc.npz")["resize_w_h_min_max_oh_ow"]
    for width, height, short_side, max_long_side, *official in golden.tolist():
        args = (height, width), short_side, max_long_side
        assert official_resized_size(*args) == tuple(official), args
        clamped = tuple(min(side, max_long_side) for side in official)
        assert resized_size(*args) == clamped, args


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((375, 1242), (240, 320), (97, 320)),  # KITTI; 321 officially
        ((300, 900), (240, 320), (107, 320)),
        ((1080, 2560), (128, 160), (68, 160)),
        ((20, 4000), (800, 1333), (7, 1333)),
        ((4000, 20), (800, 1333), (1333, 7)),
        ((1, 5000), (800, 1333), (1, 1333)),
        ((1, 1), (800, 1333), (800, 800)),
        ((480, 640), (800, 1333), (800, 1066)),
    ],
)
def test_resized_size_of_odd_shapes(size, limits, expected):
    assert resized_size(size, *limits) == expected


@pytest.mark.parametrize("limits", [(240, 320), (128, 160), (800, 1333), (640, 640), (1, 1)])
def test_resized_size_never_exceeds_the_limit_nor_vanishes(limits):
    sides = np.random.default_rng(0).integers(1, [[300], [5000]], (2, 4000))
    for size in [*zip(*sides.tolist(), strict=True), *zip(*sides[::-1].tolist(), strict=True)]:
        found = resized_size(size, *limits)
        assert min(found) >= 1 and max(found) <= limits[1], size
        # the aspect ratio holds to within a pixel of either side
        scale = max(found) / max(size)
        assert abs(min(found) - max(1, min(size) * scale)) < 1.5, size


def draw_box(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.full((height, width, 3), 20, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (250, 180, 90)
    return image


def measured_box(content: np.ndarray) -> list[float]:
    """The bright rectangle's edges from its weight and centre of mass, sub-pixel."""
    weight = (content[..., 0].astype(float) - 20) / 230
    edges = []
    for profile in (weight.max(axis=0), weight.max(axis=1)):
        side = profile.sum()
        center = (profile * (np.arange(len(profile)) + 0.5)).sum() / side
        edges.append((center - side / 2, center + side / 2))
    (x1, x2), (y1, y2) = edges
    return [x1, y1, x2, y2]


@pytest.mark.parametrize("flip", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("factor", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("crop", CROPS)
def test_boxes_follow_the_pixels(flip, factor, crop):
    """Draws a box, augments, and finds it where `move_boxes` says."""
    box = (22, 14, 47, 33)
    image = draw_box(48, 64, box)
    row = np.full((128, 160, 3), 77, np.uint8)
    placement = Placement.whole((96, 128))
    for axis in range(2):
        placement = placement.mirrored(axis) if flip[axis] else placement
    placement = placement.rescaled(factor).cropped((96, 128), crop)
    write_row(row, image, placement)
    boxes, keep = move_boxes(np.array([box], np.float32), (48, 64), placement)
    height, width = placement.size
    assert (row[height:] == 0).all() and (row[:, width:] == 0).all()
    assert (row[:height, :width] > 0).all()
    if keep[0]:
        found = measured_box(row[:height, :width])
        np.testing.assert_allclose(boxes[0], found, atol=0.6)
        assert (boxes[0] >= 0).all() and boxes[0, 2] <= width and boxes[0, 3] <= height


def test_flipping_twice_is_nothing():
    box = np.array([[3.0, 4.0, 20.5, 30.25]])
    mirrored = Placement.whole((48, 64)).mirrored(1)
    once, _ = move_boxes(box, (48, 64), mirrored)
    twice, _ = move_boxes(once, (48, 64), mirrored)
    np.testing.assert_array_equal(twice, box)
    np.testing.assert_array_equal(once, [[43.5, 4.0, 61.0, 30.25]])
    cropped = Placement.whole((48, 64)).cropped((20, 30), (0.2, 0.7))
    assert cropped.mirrored(0).mirrored(0) == cropped


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_then_a_flip_is_the_mirrored_crop(axis):
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    cropped = Placement.whole((37, 61)).cropped((20, 30), (0.2, 0.7))
    plain, mirrored = np.empty((2, 20, 30, 3), np.uint8)
    write_row(plain, image, cropped)
    write_row(mirrored, image, cropped.mirrored(axis))
    np.testing.assert_array_equal(mirrored, np.flip(plain, axis))


def test_plain_row_is_opencv_resize():
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    row = np.empty((96, 160, 3), np.uint8)
    placement = Placement.whole((80, 131))
    write_row(row, image, placement)
    expected = cv2.resize(image, (131, 80), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(row[:80, :131], expected)
    assert placement.scale(image.shape) == (80 / 37, 131 / 61)


@pytest.mark.parametrize("size", [(60, 80), (59, 79), (24, 32), (29, 81)])
def test_large_images_are_averaged_not_skipped_through(size):
    """Noise keeps its mean and loses its contrast, as it does where every pixel counts."""
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    row = np.empty((*size, 3), np.uint8)
    write_row(row, image, Placement.whole(size))
    below_half = size in ((59, 79), (24, 32))
    flag = cv2.INTER_AREA if below_half else cv2.INTER_LINEAR
    expected = cv2.resize(image, size[::-1], interpolation=flag)
    np.testing.assert_array_equal(row, expected)
    if below_half:
        pixels = 120 * 160 / (size[0] * size[1])
        assert row.std() == pytest.approx(image.std() / np.sqrt(pixels), rel=0.2)


def test_crops_drop_boxes_that_are_hardly_visible():
    placement = Placement((50, 60), full=(50, 200), size=(50, 60), offset=(0, 40))
    boxes = np.array([[0, 0, 50, 10], [0, 0, 80, 10], [45, 5, 70, 20], [0, 0, 30, 30]], np.float32)
    moved, keep = move_boxes(boxes, (50, 200), placement)
    assert keep.tolist() == [False, True, True, False]  # 20 %, 50 %, all, nothing visible
    np.testing.assert_array_equal(moved[1], [0, 0, 40, 10])


def test_color_jitter():
    image = np.random.default_rng(1).integers(60, 190, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(images.jitter_color(image, (1.0, 1.0, 1.0)), image)
    brighter = images.jitter_color(image, (1.2, 1.0, 1.0)).astype(int)
    assert np.abs(brighter - 1.2 * image).max() <= 1
    gray = images.jitter_color(image, (1.0, 1.0, 0.0)).astype(int)
    assert np.ptp(gray, axis=-1).max() <= 1  # saturation 0
    flat = images.jitter_color(image, (1.0, 0.0, 1.0)).astype(int)
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() <= 1  # contrast 0
