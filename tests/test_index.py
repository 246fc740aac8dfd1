"""The index of a large set: equal to reading, made again when anything changed or is damaged."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from atss_jax.data import index, sources
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from tests.test_layouts import TRAIN, write_coco


@pytest.fixture
def config(tmp_path, monkeypatch) -> DataConfig:
    monkeypatch.setattr(index, "MIN_IMAGES", 3)
    write_coco(tmp_path / "set")
    return DataConfig(root=str(tmp_path / "set"), index_folder=str(tmp_path / "index"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the sets that were read, not taken from an index."""
    names, read = [], sources._read

    def counted(source, name, config):
        names.append(name)
        return read(source, name, config)

    monkeypatch.setattr(sources, "_read", counted)
    return names


def assert_equal(one: DetectionDataset, two: DetectionDataset) -> None:
    assert one.coco_ground_truth() == two.coco_ground_truth()
    for name in ("image_ids", "sizes", "orientations", "digests", "has_objects"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name
    assert one.health == two.health and one.class_names == two.class_names
    assert one.image_bytes(1) == two.image_bytes(1) and one.max_pixels == two.max_pixels


def test_the_second_start_reads_the_index(config, reads):
    first = sources.load_split(config, "train")
    second = sources.load_split(config, "train")
    assert reads == ["set/train"]
    assert_equal(first, second)
    assert second.health.odd  # images without boxes are there


def test_what_changed_is_read_again(config, reads, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = sources.load_split(config, "train")
    image = tmp_path / "set/train2017" / TRAIN[0]
    os.utime(image, ns=(1, 1))
    assert_equal(first, sources.load_split(config, "train"))
    assert len(reads) == 2 and "image files have changed" in caplog.text
    assert_equal(first, sources.load_split(config, "train"))
    assert len(reads) == 2  # the new time is known now
    data = image.read_bytes()
    image.unlink()
    with pytest.raises(ValueError, match="no such file"):
        sources.load_split(config, "train")
    image.write_bytes(data)
    path = tmp_path / "set/annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"worm"', '"wurm"'))
    assert "wurm" in sources.load_split(config, "train").class_names
    sources.load_split(DataConfig(root=config.root, index_folder=""), "train")
    assert len(reads) == 5


def test_a_damaged_index_is_made_again(config, reads, tmp_path, caplog):
    first = sources.load_split(config, "train")
    (path,) = (tmp_path / "index").glob("*.npz")
    for data in (b"", path.read_bytes()[:500], b"\0" * 500):
        path.write_bytes(data)
        assert_equal(first, sources.load_split(config, "train"))
        assert "damaged" in caplog.text
    assert len(reads) == 4


def test_a_folder_that_cannot_be_written(config, reads, tmp_path, caplog):
    Path(tmp_path / "file").write_text("")
    config = DataConfig(root=config.root, index_folder=str(tmp_path / "file"))
    assert sources.load_split(config, "train").num_records == len(TRAIN)
    assert "not written" in caplog.text and reads == ["set/train"]


def test_sets_with_dropped_images_and_small_ones_have_none(config, tmp_path, monkeypatch):
    (tmp_path / "set/train2017" / TRAIN[0]).unlink()
    values = {"root": config.root, "index_folder": config.index_folder}
    skip = DataConfig(**values, on_error="skip", max_bad_fraction=0.5)
    assert sources.load_split(skip, "train").num_records == len(TRAIN) - 1
    monkeypatch.setattr(index, "MIN_IMAGES", 2000)
    sources.load_split(config, "val")
    assert not list((tmp_path / "index").glob("*.npz"))
