"""ArrayRecord sets equal the JSON they came from; the stock layout; `shapes`; interruptions."""

import copy
import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from atss_jax.data import loader, synthetic, tfds_builders
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.records import find_builder_dir
from atss_jax.data.stock_records import COCO_CATEGORY_IDS
from atss_jax.data.tfds_builders import load_tfds, prepare_records

BUCKETS = ((160, 224), (160, 256), (224, 160), (256, 160), (160, 320), (320, 160))


class Coco(tfds.core.GeneratorBasedBuilder):
    """Records laid out as the stock `coco/2017` builder does, from a local JSON."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]
    source: dict[str, tuple[Path, Path]] = {}

    def _info(self):
        objects = tfds.features.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(num_classes=80),
                "is_crowd": np.bool_,
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": objects,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.source}

    def _generate_examples(self, split: str = "train"):
        path, folder = self.source[split]
        content = json.loads(path.read_text())
        categories = content["categories"]
        features: Any = self.info.features
        features["objects"]["label"].names = [c["name"] for c in categories]
        label_of = {c["id"]: n for n, c in enumerate(categories)}
        for image in content["images"]:
            h, w = image["height"], image["width"]
            found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            boxes = [a["bbox"] for a in found]
            yield (
                image["id"],
                {
                    "image": io.BytesIO((folder / image["file_name"]).read_bytes()),
                    "image/filename": image["file_name"],
                    "image/id": image["id"],
                    "objects": [
                        {
                            "id": a["id"],
                            "area": a["area"],
                            "bbox": tfds.features.BBox(
                                ymin=y / h, xmin=x / w, ymax=(y + bh) / h, xmax=(x + bw) / w
                            ),
                            "label": label_of[a["category_id"]],
                            "is_crowd": bool(a["iscrowd"]),
                        }
                        for a, (x, y, bw, bh) in zip(found, boxes, strict=True)
                    ],
                },
            )


@pytest.fixture(scope="module")
def sample(shared) -> tuple[Path, Path]:
    base = shared / "data" / "coco_sample"
    return base / "annotations" / "instances_train2017.json", base / "images" / "train2017"


@pytest.fixture(scope="module")
def from_json(sample) -> DetectionDataset:
    return load_coco(str(sample[0]), str(sample[1]), name="coco")


def batches_of(dataset: DetectionDataset) -> list[Any]:
    plan = BatchPlan(
        dataset.sizes,
        buckets=BUCKETS,
        global_batch=4,
        seed=1,
        short_sides=(120, 144),
        max_long_side=320,
        augmentations=("flip(0.5)", "scale_crop(0.8, 1.25)"),
    )
    return [loader.batch_at(dataset, plan, step) for step in range(26)]


def assert_same_batches(first: DetectionDataset, second: DetectionDataset) -> None:
    """Byte for byte."""
    for one, other in zip(batches_of(first), batches_of(second), strict=True):
        for a, b in zip(
            (*one.ground_truth, one.image, one.image_size, one.record_index, one.scale),
            (*other.ground_truth, other.image, other.image_size, other.record_index, other.scale),
            strict=True,
        ):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_text_ids_become_numbers_in_records_and_that_is_said(from_json, tmp_path, caplog):
    names = tuple(f"picture {n}" for n in range(from_json.num_records))
    named = dataclasses.replace(from_json, original_image_ids=names)
    prepare_records(named, str(tmp_path), "mine", "train")
    assert "the image ids (picture 0, ...) become numbers from 1" in caplog.text
    records = load_tfds("mine", "train", str(tmp_path))
    np.testing.assert_array_equal(records.image_ids, from_json.image_ids)


def test_own_records_equal_the_json(from_json, tmp_path, caplog):
    prepare_records(from_json, str(tmp_path), "mine", "train", shard_bytes=2**21)
    assert "become numbers" not in caplog.text
    records = load_tfds("mine", "train", str(tmp_path))
    assert len(list(tmp_path.glob("mine/1.0.0/*.array_record-*"))) > 1
    assert records.coco_ground_truth() == from_json.coco_ground_truth()
    np.testing.assert_array_equal(records.image_ids, from_json.image_ids)
    assert_same_batches(records, from_json)
    assert_same_batches(pickle.loads(pickle.dumps(records)), from_json)


def test_stock_coco_equals_the_json(sample, from_json, tmp_path):
    Coco.source = {"train": sample}
    Coco(config="2017", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    records = load_tfds("coco/2017", "train", str(tmp_path))
    assert records.category_ids == COCO_CATEGORY_IDS == from_json.category_ids
    assert records.class_names == from_json.class_names
    assert_same_batches(records, from_json)
    truth, expected = records.coco_ground_truth(), from_json.coco_ground_truth()
    for found, original in zip(truth["annotations"], expected["annotations"], strict=True):
        area = original.pop("area")
        assert found.pop("area") == int(area)  # the stock layout keeps whole px^2
        np.testing.assert_allclose(found.pop("bbox"), original.pop("bbox"), atol=1e-9)
        assert found == original


def test_preparing_goes_on_after_an_interruption(from_json, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 30:
            raise Interrupted

    arguments = (from_json, str(tmp_path), "mine", "train")
    with pytest.raises(Interrupted):
        prepare_records(*arguments, shard_bytes=2**20, progress=stop)
    assert find_builder_dir("mine", str(tmp_path)) is None  # unfinished sets are not found
    finished = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("mine/1.0.0/mine-*")}
    assert finished
    steps: list[int] = []
    folder = Path(
        prepare_records(*arguments, shard_bytes=2**20, progress=lambda d, _: steps.append(d))
    )
    assert len(steps) < 50 and steps[-1] == 50
    for name, written in finished.items():
        assert (folder / name).stat().st_mtime_ns == written
    assert_same_batches(load_tfds("mine", "train", str(tmp_path)), from_json)


def test_refusals(from_json, tmp_path):
    with pytest.raises(ValueError, match="name='My set'"):
        prepare_records(from_json, str(tmp_path), "My set", "train")
    prepare_records(from_json, str(tmp_path), "mine", "train")
    with pytest.raises(ValueError, match="of other data"):
        prepare_records(from_json, str(tmp_path), "mine", "train", shard_bytes=2**20)
    with pytest.raises(ValueError, match="no split 'test'; there are train"):
        load_tfds("mine", "test", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no prepared set 'other'"):
        load_tfds("other", "train", str(tmp_path))
    assert load_tfds("mine", "train[:10]", str(tmp_path)).num_records == 10


def test_a_split_with_other_category_ids_is_refused_and_changes_nothing(from_json, tmp_path):
    prepare_records(from_json, str(tmp_path), "mine", "train")
    before = {p.name: p.read_bytes() for p in (tmp_path / "mine" / "1.0.0").iterdir()}
    ids = tuple(id_ + 1 for id_ in from_json.category_ids)
    shifted = dataclasses.replace(
        from_json,
        category_ids=ids,
        annotations=from_json.annotations._replace(
            category_id=from_json.annotations.category_id + 1
        ),
    )
    with pytest.raises(ValueError, match="the same classes and ids in both"):
        prepare_records(shifted, str(tmp_path), "mine", "val")
    assert {p.name: p.read_bytes() for p in (tmp_path / "mine" / "1.0.0").iterdir()} == before


def test_unknown_categories_are_bad_as_in_a_json(from_json, tmp_path):
    a = from_json.annotations
    category_id = a.category_id.copy()
    category_id[[3, 9]] = 99, -3
    changed = copy.copy(from_json)  # no data set can be made with them
    object.__setattr__(changed, "annotations", a._replace(category_id=category_id))
    prepare_records(changed, str(tmp_path), "mine", "train")
    with pytest.raises(ValueError, match=rf"annotation {a.id[3]} of image .*category_id 99 is not"):
        load_tfds("mine", "train", str(tmp_path))
    records = load_tfds("mine", "train", str(tmp_path), config=DataConfig(on_error="skip"))
    assert dict(records.health.bad) == {"unknown_category": 2}
    assert len(records.annotations.id) == len(a.id) - 2


def test_two_classes_of_one_name_are_refused(from_json, tmp_path):
    names = ("person", "person", *from_json.class_names[2:])
    prepare_records(
        dataclasses.replace(from_json, class_names=names), str(tmp_path), "mine", "train"
    )
    with pytest.raises(ValueError, match=r"mine.*each needs an id and a name of its own"):
        load_tfds("mine", "train", str(tmp_path))


@pytest.mark.parametrize("on_error", ["strict", "skip"])
def test_damaged_files_are_named(from_json, tmp_path, on_error, caplog):
    folder = Path(prepare_records(from_json, str(tmp_path), "mine", "train"))
    expected = load_tfds("mine", "train", str(tmp_path)).coco_ground_truth()
    (columns,) = folder.glob("columns-*.npz")
    columns.write_bytes(columns.read_bytes()[:1000])
    found = load_tfds(
        "mine", "train", str(tmp_path), config=DataConfig(on_error=on_error)
    ).coco_ground_truth()
    assert found == expected and f"{columns}: damaged" in caplog.text  # read again
    columns.unlink()
    record_file = next(folder.glob("*.array_record*"))
    data = record_file.read_bytes()
    for damaged in (data[: len(data) // 2], b"garbage" * 99):
        record_file.write_bytes(damaged)
        with pytest.raises(ValueError, match="records cannot be read") as error:
            load_tfds("mine", "train", str(tmp_path), config=DataConfig(on_error=on_error))
        assert str(folder) in str(error.value)


def test_shapes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 12, "validation": 5})
    train = load_tfds("shapes", "train", str(tmp_path))
    assert train.num_records == 12 and train.class_names == synthetic.CLASS_NAMES
    assert train.category_ids == (1, 2, 3, 4, 5, 6)
    for n in range(12):
        scene = synthetic.make_scene("train", n)
        assert train.image_ids[n] == n + 1
        assert train.sizes[n].tolist() == list(scene.image.shape[:2])
        np.testing.assert_allclose(train.boxes(n), scene.boxes, rtol=1e-6, atol=1e-4)
        assert train.labels(n).tolist() == scene.labels.tolist()
    monkeypatch.setattr(tfds_builders, "_build", None)  # the second time nothing is built
    assert load_tfds("shapes", "validation", str(tmp_path)).num_records == 5


def test_a_set_that_another_process_has_built_meanwhile_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 6, "validation": 2})
    builder = tfds_builders.BUILDERS["shapes"]
    build: Any = builder.download_and_prepare

    def build_second(self):
        first = builder(data_dir=str(tmp_path), file_format="array_record")
        build(first)
        raise FileExistsError("the folder is there")

    monkeypatch.setattr(builder, "download_and_prepare", build_second)
    assert load_tfds("shapes", "train", str(tmp_path)).num_records == 6

    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(builder, "download_and_prepare", fail)
    with pytest.raises(OSError, match="disk full"):
        load_tfds("shapes", "train", str(tmp_path / "other"))


def test_scenes_are_fixed_and_separable():
    scenes = [synthetic.make_scene("train", n) for n in range(150)]
    again = synthetic.make_scene("train", 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    other = synthetic.make_scene("validation", 7)
    assert other.image.shape != again.image.shape or (other.image != again.image).any()
    counts = np.array([len(s.labels) for s in scenes])
    assert 0 < (counts == 0).sum() < 30 and counts.max() >= 5
    labels = np.concatenate([s.labels for s in scenes])
    assert np.bincount(labels, minlength=6).min() > 40
    for scene in scenes:
        height, width = scene.image.shape[:2]
        assert height != width
        assert (scene.boxes >= 0).all() and (scene.boxes <= [width, height] * 2).all()
    sides = np.concatenate([s.boxes[:, 2:] - s.boxes[:, :2] for s in scenes])
    assert sides.min() < 13 and sides.max() > 90


def test_crowded_scenes_have_five_octaves_elongated_objects_and_small_ones_on_large_ones():
    scenes = [synthetic.make_scene("train", n, "shapes_crowded") for n in range(60)]
    again = synthetic.make_scene("train", 7, "shapes_crowded")
    np.testing.assert_array_equal(again.image, scenes[7].image)
    boxes = np.concatenate([s.boxes for s in scenes])
    sides = boxes[:, 2:] - boxes[:, :2]
    size = np.sqrt(np.prod(sides, axis=1))
    assert 6 <= size.min() < 7 and np.log2(size.max() / size.min()) > 4.7
    assert np.quantile(np.exp(np.abs(np.log(sides[:, 0] / sides[:, 1]))), 0.9) > 3
    assert np.mean([len(s.labels) for s in scenes]) > 6
    assert all((s.labels == 0).all() for s in scenes)
    inside = 0
    for scene in scenes:
        low = scene.boxes[:, None, :2] <= scene.boxes[None, :, :2]
        high = scene.boxes[:, None, 2:] >= scene.boxes[None, :, 2:]
        inside += (low & high).all(axis=-1).sum() - len(scene.boxes)
    assert inside > 60


@pytest.mark.parametrize("label", range(6))
def test_drawn_objects_fill_their_boxes(label):
    image = np.full((64, 80, 3), 10, np.float32)
    box = np.array([12.25, 9.5, 51.75, 50.0])
    rng = np.random.default_rng(label)
    synthetic._draw(rng, image, label, box)
    changed = np.abs(image - 10).max(axis=-1)
    strength = changed / changed.max()
    rows, columns = strength.max(axis=1), strength.max(axis=0)
    inside = np.flatnonzero(columns > 0.5), np.flatnonzero(rows > 0.5)
    measured = [inside[0][0], inside[1][0], inside[0][-1] + 1, inside[1][-1] + 1]
    np.testing.assert_allclose(measured, box, atol=1.1)
