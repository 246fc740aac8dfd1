"""The index of a large set: equal to reading, made again when anything changed or is damaged."""

import logging
import os
import subprocess
import sys
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


def test_dropped_images_are_kept_in_mind(config, reads, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "set/train2017"
    data = (folder / TRAIN[0]).read_bytes()
    (folder / TRAIN[0]).unlink()
    (folder / TRAIN[1]).write_bytes(b"no image")
    values = {"root": config.root, "index_folder": config.index_folder}
    skip = DataConfig(**values, on_error="skip", max_bad_fraction=0.5)
    first = sources.load_split(skip, "train")
    assert first.num_records == len(TRAIN) - 2
    assert first.health.bad == {"image_missing": 1, "image_undecodable": 1}
    assert_equal(first, sources.load_split(skip, "train"))
    assert len(reads) == 1
    (folder / TRAIN[0]).write_bytes(data)  # what was missing has come
    assert sources.load_split(skip, "train").num_records == len(TRAIN) - 1
    assert len(reads) == 2 and "image files have changed" in caplog.text


def test_a_file_that_changes_while_it_is_read(config, tmp_path, monkeypatch, caplog):
    read = sources._read

    def slow(source, name, config):
        dataset = read(source, name, config)
        os.utime(tmp_path / "set/train2017" / TRAIN[0])
        return dataset

    monkeypatch.setattr(sources, "_read", slow)
    sources.load_split(config, "train")
    assert "changed meanwhile" in caplog.text
    assert not list((tmp_path / "index").glob("*.npz"))


def test_small_sets_have_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MIN_IMAGES", 500)
    sources.load_split(config, "val")
    assert not list((tmp_path / "index").glob("*.npz"))


READER = """
import sys
from atss_jax.data import index, sources
from atss_jax.data.config import DataConfig
index.MIN_IMAGES = 3
read = sources._read
def counted(*args):
    print("read")
    return read(*args)
sources._read = counted
config = DataConfig(root=sys.argv[1], index_folder=sys.argv[2])
print(sources.load_split(config, "train").num_records)
"""


@pytest.mark.slow
def test_of_several_processes_one_reads(config):
    command = [sys.executable, "-c", READER, config.root, config.index_folder]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    words = [word for process in started for word in process.communicate()[0].split()]
    assert sorted(words) == [*[str(len(TRAIN))] * 3, "read"]
