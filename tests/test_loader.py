"""Batches: exact pixels and boxes, order, resume, hosts, workers, overflow, evaluation."""

import hashlib
import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from atss_jax.data import augment, augment_list, batch_rows, loader
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.coco import load_coco
from atss_jax.data.dataset import DetectionDataset
from atss_jax.structures import Batch

BUCKETS = ((64, 96), (96, 64))
RESIZE: dict[str, Any] = {"short_side": 48, "max_long_side": 96}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DetectionDataset:
    return make_set(tmp_path_factory.mktemp("set"), 21)


def make_set(folder: Path, count: int) -> DetectionDataset:
    """Images of noise, two thirds of them wide, with 0..4 boxes."""
    rng = np.random.default_rng(5)
    images, annotations = [], []
    for i in range(1, count + 1):
        height, width = (40, 56) if i % 3 else (60, 44)
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))
        images.append({"id": 10 * i, "file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(i % 5):
            x, y = rng.uniform(0, 20, 2).round(2)
            w, h = rng.uniform(5, 20, 2).round(2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * i,
                    "category_id": 1 + int(rng.integers(2)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco(str(folder / "a.json"), str(folder), name="noise")


def make_plan(dataset: DetectionDataset, **keywords) -> BatchPlan:
    keywords = {
        "buckets": BUCKETS,
        "global_batch": 4,
        "seed": 3,
        "short_sides": (40, 44, 48),
        "max_long_side": 96,
        "augmentations": ("flip(0.5)", "scale_crop(0.6, 1.5)", "color_jitter(0.2)"),
    } | keywords
    return BatchPlan(dataset.sizes, **keywords)


def assert_equal(first: Batch, second: Batch) -> None:
    for name in ("image", "image_size", "record_index", "scale"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name, value in first.ground_truth._asdict().items():
        np.testing.assert_array_equal(value, getattr(second.ground_truth, name), err_msg=name)


def take(batches: loader.Batches, count: int) -> list[Batch]:
    with batches:
        return [next(batches) for _ in range(count)]


def test_batch_content(dataset):
    """A plain batch is cv2.resize of the files, with scaled boxes."""
    plan = make_plan(dataset, short_sides=(48,), augmentations=(), global_batch=3)
    batch = loader.batch_at(dataset, plan, 5, max_boxes=6)
    shapes = loader.batch_shapes(plan.step(5).bucket, 3, 6)
    for value, shape in zip(
        (batch.image, batch.image_size, *batch.ground_truth, batch.record_index, batch.scale),
        (shapes.image, shapes.image_size, *shapes.ground_truth, shapes.record_index, shapes.scale),
        strict=True,
    ):
        assert value.shape == shape.shape and value.dtype == shape.dtype
    for row, record in enumerate(batch.record_index):
        data = np.frombuffer(dataset.image_bytes(record), np.uint8)
        original = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
        height, width = (int(side) for side in batch.image_size[row])
        expected = cv2.resize(original, (width, height), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(batch.image[row, :height, :width], expected)
        assert not batch.image[row, height:].any() and not batch.image[row, :, width:].any()
        np.testing.assert_allclose(
            batch.scale[row], np.array([height, width]) / original.shape[:2], rtol=1e-6
        )
        boxes = dataset.boxes(record) * np.tile(batch.scale[row][::-1], 2)
        count = len(boxes)
        np.testing.assert_allclose(batch.ground_truth.boxes[row, :count], boxes, rtol=1e-5)
        assert batch.ground_truth.labels[row, :count].tolist() == dataset.labels(record).tolist()
        assert batch.ground_truth.is_valid[row].tolist() == [True] * count + [False] * (6 - count)


def test_augmented_boxes_stay_inside(dataset):
    plan = make_plan(dataset)
    for step in range(30):
        batch = loader.batch_at(dataset, plan, step, max_boxes=6)
        truth = batch.ground_truth
        assert (truth.boxes[truth.is_valid][:, 2:] > truth.boxes[truth.is_valid][:, :2]).all()
        limits = np.broadcast_to(batch.image_size[:, None, ::-1], (4, 6, 2))[truth.is_valid]
        assert (truth.boxes[truth.is_valid][:, 2:] <= limits).all()
        assert not truth.boxes[~truth.is_valid].any()


MIXED = ("mosaic(0.5)", "mixup(0.5)", "vertical_flip(0.5)", "scale_crop(0.8, 1.2)")


@pytest.mark.parametrize("hosts", [2, 4])
def test_mixed_images_do_not_depend_on_hosts(dataset, hosts):
    """Also when they need other images, and more boxes than slots keep the largest."""
    plan = make_plan(dataset, augmentations=MIXED)
    for step in range(4):
        whole = loader.batch_at(dataset, plan, step, max_boxes=4)
        parts = [
            loader.batch_at(dataset, plan, step, max_boxes=4, process_index=i, process_count=hosts)
            for i in range(hosts)
        ]
        np.testing.assert_array_equal(np.concatenate([p.image for p in parts]), whole.image)
        boxes = np.concatenate([p.ground_truth.boxes for p in parts])
        np.testing.assert_array_equal(boxes, whole.ground_truth.boxes)


class FormerDraws(augment.Draws):
    """Numbers of the layout before each augmentation had its own: eight words per row."""

    COLUMNS = ((1,), (2, 3, 4), (5, 6, 7))

    def __init__(self, seed: int, step: int, row: int, place: int):
        key, counter = np.array([seed, 1], np.uint64), np.array([0, 0, step, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(8 * (row + 1))[8 * row :]
        uniform = (words >> np.uint64(11)) * 2.0**-53
        self._left = iter([float(uniform[column]) for column in self.COLUMNS[place]])

    def uniform(self) -> float:
        return next(self._left)


def test_equal_draws_give_the_batches_of_the_former_code(dataset, monkeypatch):
    """Hashes of pixels, boxes and all else made by the version of commit 30a6cc9."""
    monkeypatch.setattr(augment_list, "Draws", FormerDraws)
    plan = make_plan(dataset)
    former = {
        0: "32c68967eb38329b",
        1: "47911a04bb93e242",
        7: "bc166be25e249ad2",
        1000: "3ee245b3ae485e03",
    }
    for step, expected in former.items():
        batch = loader.batch_at(dataset, plan, step)
        digest = hashlib.sha256()
        fields = (batch.image, batch.image_size, batch.record_index, batch.scale)
        for value in (*fields, *batch.ground_truth):
            digest.update(np.ascontiguousarray(value).tobytes())
        assert digest.hexdigest()[:16] == expected, step


@pytest.mark.parametrize("prefetch", [0, 3])
def test_order_resume_and_hosts(dataset, prefetch):
    plan = make_plan(dataset)
    whole = take(loader.train_batches(dataset, plan, prefetch=prefetch), 12)
    for step, batch in enumerate(whole):
        assert_equal(batch, loader.batch_at(dataset, plan, step))
    resumed = take(loader.train_batches(dataset, plan, start_step=7, prefetch=prefetch), 5)
    for batch, expected in zip(resumed, whole[7:], strict=True):
        assert_equal(batch, expected)
    for host in range(2):
        batches = loader.train_batches(dataset, plan, process_index=host, process_count=2)
        for part, expected in zip(take(batches, 3), whole, strict=False):
            rows = slice(2 * host, 2 * host + 2)
            np.testing.assert_array_equal(part.image, expected.image[rows])
            np.testing.assert_array_equal(part.record_index, expected.record_index[rows])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing_and_end(dataset, num_workers):
    plan = make_plan(dataset)
    batches = loader.train_batches(dataset, plan, start_step=4, num_workers=num_workers)
    for step, batch in enumerate(take(batches, 7), start=4):
        assert_equal(batch, loader.batch_at(dataset, plan, step))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_names_the_broken_file(tmp_path):
    dataset = make_set(tmp_path, 6)
    (tmp_path / "4.png").write_bytes(b"now broken")
    batches = loader.train_batches(dataset, make_plan(dataset), num_workers=1)
    with batches, pytest.raises(ValueError, match=r"image 40 \(4.png\) of noise"):
        for _ in range(6):
            next(batches)


def test_a_broken_or_changed_file_is_named(tmp_path):
    dataset = make_set(tmp_path, 4)
    plan = make_plan(dataset)
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"image 20 \(2.png\) of noise: .*No such file"):
        take(loader.train_batches(dataset, plan), 4)
    cv2.imwrite(str(tmp_path / "2.png"), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"image 20 .*decodes to .*\(8, 9\)"):
        take(loader.train_batches(dataset, plan), 4)


def test_a_file_that_is_cut_after_its_first_reading_is_still_found(tmp_path):
    picture = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture)
    about = {"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}
    content = {"images": [about], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = load_coco(str(tmp_path / "a.json"), str(tmp_path), name="one")
    batch_rows.read_image(dataset, 0)
    assert dataset.whole_bytes.tolist() == [path.stat().st_size]
    batch_rows.read_image(dataset, 0)
    path.write_bytes(path.read_bytes()[:-500])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"a.jpg\) of one: the file is cut off"):
            batch_rows.read_image(dataset, 0)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_image_once(dataset, hosts):
    seen, shapes = [], []
    for host in range(hosts):
        batches = loader.eval_batches(
            dataset,
            buckets=BUCKETS,
            batch_size=4,
            process_index=host,
            process_count=hosts,
            **RESIZE,
        )
        expected = len(batches)
        with batches:
            found = list(batches)
        assert len(found) == expected
        shapes.append([batch.image.shape for batch in found])
        for batch in found:
            assert len(batch.record_index) == 4 // hosts
            empty = batch.record_index < 0
            assert not batch.image[empty].any() and not batch.ground_truth.is_valid[empty].any()
            assert np.all(batch.image_size[empty] == batch.image.shape[1:3])
            seen += batch.record_index[~empty].tolist()
            for row in np.flatnonzero(~empty):
                size = dataset.sizes[batch.record_index[row]]
                assert min(batch.image_size[row]) == 48
                np.testing.assert_allclose(batch.scale[row] * size, batch.image_size[row])
    assert sorted(seen) == list(range(dataset.num_records))
    assert all(shape == shapes[0] for shape in shapes)  # the same programs on every host


def test_evaluation_needs_no_slot_for_every_box(dataset):
    """A set with fuller images than the training had can be evaluated all the same."""
    assert dataset.num_boxes.max() > 3
    kwargs = {"buckets": BUCKETS, "batch_size": 4, "max_boxes": 3, **RESIZE}
    with loader.eval_batches(dataset, **kwargs) as batches:
        rows = [row for batch in batches for row in batch.record_index.tolist() if row >= 0]
    assert sorted(rows) == list(range(dataset.num_records))


def test_too_many_boxes(dataset):
    plan = make_plan(dataset, augmentations=("flip(0.5)",))
    message = r"image 40 \(4.png\): 4 ground-truth boxes, but data.max_boxes=3 \(4 such images"
    with pytest.raises(ValueError, match=message):
        loader.train_batches(dataset, plan, max_boxes=3)
    with pytest.raises(ValueError, match="data.on_overflow='cut'"):
        loader.train_batches(dataset, plan, on_overflow="cut")
    for step in range(10):
        cut = loader.batch_at(dataset, plan, step, max_boxes=3, on_overflow="largest")
        whole = loader.batch_at(dataset, plan, step, max_boxes=4)
        for row in range(4):
            boxes = whole.ground_truth.boxes[row][whole.ground_truth.is_valid[row]]
            area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
            kept = boxes[sorted(np.argsort(-area, kind="stable")[:3])]
            np.testing.assert_array_equal(cut.ground_truth.boxes[row, : len(kept)], kept)


def test_bad_calls(dataset):
    plan = make_plan(dataset)
    with pytest.raises(ValueError, match="does not divide over 3 processes"):
        loader.train_batches(dataset, plan, process_count=3)
    with pytest.raises(ValueError, match="process_index=2"):
        loader.train_batches(dataset, plan, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="data.num_workers=-1"):
        loader.train_batches(dataset, plan, num_workers=-1)
    with pytest.raises(ValueError, match="fits none"):
        loader.eval_batches(dataset, buckets=((32, 64),), batch_size=4, **RESIZE)
    with pytest.raises(TypeError, match="endless"):
        len(loader.train_batches(dataset, plan))


def test_closing_twice_and_early(dataset):
    batches = loader.train_batches(dataset, make_plan(dataset))
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_a_read_that_blocks_holds_neither_the_stop_nor_the_end(monkeypatch, caplog):
    """As of a mount that does not answer: the wish to stop is seen, and close gives up."""
    monkeypatch.setattr(loader, "CLOSE_SECONDS", 0.2)
    answer = threading.Event()

    class Blocked:
        def __iter__(self):
            return self

        def __next__(self):
            answer.wait()
            raise StopIteration

        close = answer.wait

    batches = loader.Batches(Blocked(), None)
    asked = iter([False, False, True])
    assert batches.next_unless(lambda: next(asked)) is None
    batches.close()
    assert "did not end within" in caplog.text
    answer.set()


def test_an_error_of_the_input_is_raised_where_the_batch_is_wanted():
    def broken():
        raise OSError("no such image")
        yield

    with pytest.raises(OSError, match="no such image"):
        loader.Batches(broken(), None).next_unless(lambda: False)
