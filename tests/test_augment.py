"""Augmentations: boxes follow pixels, streams do not move each other, bad entries are named."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from atss_jax.data import augment
from atss_jax.data.augment import Draws, Sample
from atss_jax.data.augment_list import Augmentations, parse_augmentation
from atss_jax.data.images import Placement

LIMIT = (96, 128)
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)


def one_box(record: int) -> Sample:
    """A rectangle of a colour of its own on gray."""
    image = np.full((48, 64, 3), 90, np.uint8)
    x1, y1, x2, y2 = 8 + 4 * record, 6 + 3 * record, 40 + 4 * record, 30 + 3 * record
    image[y1:y2, x1:x2] = COLORS[record]
    boxes, labels = np.array([[x1, y1, x2, y2]], np.float64), np.array([record], np.int32)
    return Sample(image, boxes, labels, Placement.whole(LIMIT))


def apply(
    entries: tuple[str, ...], step: int, read: Callable[[int], Sample] = one_box, pool: int = 4
) -> Sample:
    augmentations = Augmentations(entries, seed=5, pool=np.arange(pool))
    return augmentations.apply(read(0), step, 2, read)


def written(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row = np.full((*LIMIT, 3), 7, np.uint8)
    boxes, labels = sample.write(row)
    return row, boxes, labels


@pytest.mark.parametrize(
    "entries",
    [
        ("vertical_flip(1.0)",),
        ("mosaic(1.0)",),
        ("flip(0.5)", "mosaic(1.0)", "vertical_flip(0.5)", "scale_crop(0.5, 2.0)"),
        ("scale_crop(0.5, 2.0)", "flip(1.0)", "scale_crop(0.5, 2.0)", "vertical_flip(1.0)"),
    ],
)
def test_boxes_follow_the_pixels(entries):
    """Every box that is kept is where its colour is, to within the blur of the resize."""
    checked = 0
    for step in range(30):
        reads = itertools.count()  # the same image may be drawn twice: each has its own colour
        row, boxes, labels = written(apply(entries, step, lambda _, n=reads: one_box(next(n))))
        for box, label in zip(boxes, labels, strict=True):
            far = np.abs(row.astype(int) - COLORS[label]).sum(axis=-1)
            ys, xs = np.nonzero(far < 200)  # gray is at least 345 away, a blurred edge half of it
            found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert np.abs(box - found).max() <= 2.0, (step, label, box, found)
            checked += 1
    assert checked >= 20


def test_vertical_flip_is_exact():
    plain, _, _ = written(one_box(0))
    flipped = apply(("vertical_flip(1.0)",), 0)
    row, boxes, _ = written(flipped)
    np.testing.assert_array_equal(row, plain[::-1])
    np.testing.assert_array_equal(boxes, [[16, 96 - 60, 80, 96 - 12]])
    assert apply(("vertical_flip(0.0)",), 0).placement == Placement.whole(LIMIT)


def test_mosaic_has_four_quarters():
    """Images of one colour each: four rectangles that meet in the middle half."""

    def plain(record: int) -> Sample:
        sample = one_box(record)
        return dataclasses.replace(
            sample,
            image=np.full_like(sample.image, 40 * (record + 1)),
            boxes=np.array([[0.0, 0.0, 64.0, 48.0]]),
        )

    seen = set()
    for step in range(20):
        row, boxes, labels = written(apply(("mosaic(1.0)",), step, plain))
        assert (row > 0).all()  # images that fill the canvas leave no padding
        # a box of a whole image is its quarter, unless less than 25 % of it is left
        for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
            assert (row[y1:y2, x1:x2] == 40 * (label + 1)).all()
            assert (x1 == 0 or 32 <= x1 <= 96) and (y1 == 0 or 24 <= y1 <= 72)
            seen.add(int(label))
        corner_values = [row[0, 0, 0], row[0, -1, 0], row[-1, 0, 0], row[-1, -1, 0]]
        assert corner_values[0] == 40 and set(corner_values) <= {40, 80, 120, 160}
    assert seen == {0, 1, 2, 3}


def test_mixup_blends_pixels_and_keeps_both_boxes():
    shares = []
    for step in range(300):
        sample = apply(("mixup(1.0)",), step, lambda record: _constant(100 * record), pool=3)
        other = int(sample.labels[1])
        assert sample.boxes.shape == (2, 4) and sample.labels[0] == 0
        np.testing.assert_array_equal(sample.boxes[0], [2, 4, 20, 40])
        if other:
            shares.append(1 - float(sample.image.mean()) / (100 * other))
    # Beta(1.5, 1.5): mean 1/2, variance 1/16
    assert abs(np.mean(shares) - 0.5) < 0.05 and abs(np.var(shares) - 1 / 16) < 0.015
    assert min(shares) > -0.01 and max(shares) < 1.01


def _constant(value: int) -> Sample:
    image = np.full((48, 64, 3), value, np.uint8)
    boxes = np.array([[1.0, 2.0, 10.0, 20.0]])
    return Sample(image, boxes, np.array([value // 100], np.int32), Placement.whole(LIMIT))


def test_another_entry_changes_no_draw_of_the_others(monkeypatch):
    """Also not the number of draws that one of them takes."""
    drawn: list[tuple[int, float]] = []

    class Recording(Draws):
        def __init__(self, seed: int, step: int, row: int, place: int):
            super().__init__(seed, step, row, place)
            self._place = place

        def uniform(self) -> float:
            drawn.append((self._place, super().uniform()))
            return drawn[-1][1]

    monkeypatch.setattr("atss_jax.data.augment_list.Draws", Recording)
    entries = ("flip(0.5)", "mosaic(0.5)", "scale_crop(0.5, 2.0)")
    for step in range(5):
        drawn.clear()
        apply(entries, step)
        before = list(drawn)
        drawn.clear()
        apply((*entries, "color_jitter(0.2)"), step)
        assert drawn[: len(before)] == before
        assert [place for place, _ in drawn[len(before) :]] == [3, 3, 3]


def test_draws_are_pinned_and_differ_by_every_part_of_the_key():
    """Resuming with another NumPy must go on with the same stream."""
    draws = Draws(3, 12_345, 2, 1)
    np.testing.assert_allclose(
        [draws.uniform(), draws.uniform()], [0.772598821, 0.501546385], atol=1e-9
    )
    firsts = {
        Draws(*key).uniform()
        for key in ((3, 5, 2, 1), (4, 5, 2, 1), (3, 6, 2, 1), (3, 5, 3, 1), (3, 5, 2, 0))
    }
    assert len(firsts) == 5
    many = [Draws(0, step, 0, 0).uniform() for step in range(2000)]
    assert 0 <= min(many) < 0.01 and 0.99 < max(many) < 1 and abs(np.mean(many) - 0.5) < 0.03


def test_arguments_set_the_ranges():
    samples = [
        apply(("flip(0.25)", "scale_crop(0.5, 2.0)", "color_jitter(0.2)"), step)
        for step in range(1000)
    ]
    assert abs(np.mean([s.placement.flip[1] for s in samples]) - 0.25) < 0.04
    factors = np.array([s.placement.full[0] / LIMIT[0] for s in samples])
    assert 0.5 <= factors.min() < 0.52 and 1.98 < factors.max() <= 2.0
    places = np.array([s.placement.offset for s in samples if s.placement.full > LIMIT])
    assert len(places) > 500 and np.all(places.min(axis=0) == 0)
    room = np.array(LIMIT)  # a factor of 2 leaves as much again beside the window
    assert np.all(places.max(axis=0) > 0.8 * room) and np.all(places.std(axis=0) > 0.1 * room)
    colors = np.array([s.colors[0] for s in samples])
    assert 0.8 <= colors.min() < 0.81 and 1.19 < colors.max() < 1.2


def test_every_augmentation_can_be_written_in_a_recipe():
    for name in augment.FUNCTIONS:
        text = "scale_crop(0.5, 2.0)" if name == "scale_crop" else f"{name}(0.5)"
        assert parse_augmentation(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flipp(0.5)", r"no augmentation 'flipp'. Did you mean flip\(probability\)\?"),
        ("flip", "not a name with arguments"),
        ("flip(", "not a name with arguments"),
        ("flip(p=0.5)", "not a name with arguments"),
        ("flip(__import__('os'))", "not a name with arguments"),
        ("flip()", r"give 1 number: flip\(probability\)"),
        ("flip('a')", r"give 1 number: flip\(probability\)"),
        ("flip(True)", "give 1 number"),
        ("scale_crop(0.5)", r"give 2 numbers: scale_crop\(low, high\)"),
        ("flip(1.5)", "probability must be at least 0 and at most 1"),
        ("color_jitter(1)", "strength must be at least 0 and below 1"),
        ("scale_crop(0, 1)", "low must be above 0"),
        ("scale_crop(2, 1)", "high must be at least low"),
    ],
)
def test_wrong_entries_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_augmentation(text)


def test_draws_are_numpys_philox_at_their_place():
    """Interleaved, beyond a block of four, and with a negative seed."""
    places = [(7, 3, 5, 0), (-1, 2**40, 0, 2)]
    draws = [Draws(*place) for place in places]
    found = [[d.uniform() for d in draws] for _ in range(11)]
    for column, (seed, step, row, place) in enumerate(places):
        philox = np.random.Philox(
            key=np.array([seed % 2**64, 2], np.uint64),
            counter=np.array([0, place, row, step], np.uint64),
        )
        expected = (philox.random_raw(11) >> np.uint64(11)) * 2.0**-53
        assert [numbers[column] for numbers in found] == expected.tolist()
