"""Stock sets of tensorflow_datasets by the types of their features: VOC, KITTI, WIDER FACE."""

import io
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from atss_jax.data.config import DataConfig
from atss_jax.data.sources import load_split

SIZE = (60, 80)
"""(h, w) px."""
BOXES = (((8, 6, 20, 30), (40, 12, 16.25, 10.5)), (), ((0, 0, 80, 60),))
"""x, y, w, h px of each image's objects."""
LABELS = ((1, 0), (), (2,))
FEATURES = tfds.features


def voc() -> tuple[str, dict[str, Any], dict[str, Any]]:
    label = FEATURES.ClassLabel(names=["aeroplane", "bicycle", "bird"])
    inside = {"label": label, "is_difficult": np.bool_, "pose": FEATURES.ClassLabel(names=["left"])}
    return "objects", inside, {"image/filename": FEATURES.Text(), "labels": FEATURES.Text()}


def kitti() -> tuple[str, dict[str, Any], dict[str, Any]]:
    inside = {"type": FEATURES.ClassLabel(names=["Car", "Van", "Misc"]), "alpha": np.float32}
    return "objects", inside, {"image/file_name": FEATURES.Text()}


def wider_face() -> tuple[str, dict[str, Any], dict[str, Any]]:
    return "faces", {"blur": np.uint8}, {"image/filename": FEATURES.Text()}


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Stock(tfds.core.GeneratorBasedBuilder):
    """Three images with the features of a stock set."""

    VERSION = tfds.core.Version("1.0.0")
    make: Any = None

    def _info(self):
        key, inside, more = type(self).make()
        objects = FEATURES.Sequence({"bbox": FEATURES.BBoxFeature(), **inside})
        image = FEATURES.Image(encoding_format="jpeg")
        features = FEATURES.FeaturesDict({"image": image, key: objects, **more})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        key, inside, more = type(self).make()
        values = {"is_difficult": [True, False], "pose": [0, 0], "alpha": [0.0] * 2, "blur": [1, 2]}
        for n, boxes in enumerate(BOXES):
            found = []
            for place, (x, y, w, h) in enumerate(boxes):
                bounds = (y / SIZE[0], x / SIZE[1], (y + h) / SIZE[0], (x + w) / SIZE[1])
                known = {name: value[place] for name, value in values.items()}
                known |= {name: LABELS[n][place] for name in ("label", "type")}
                box = FEATURES.BBox(*bounds)
                found.append({name: known[name] for name in inside} | {"bbox": box})
            texts = {name: f"im_{n}.jpg" for name in more}
            yield n, {"image": io.BytesIO(encoded(n)), key: found, **texts}


@pytest.mark.parametrize("make", [voc, kitti, wider_face])
def test_features_are_found_by_their_types(make, tmp_path):
    Stock.make = staticmethod(make)
    Stock(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = DataConfig(source="tfds", name="stock", data_dir=str(tmp_path))
    dataset = load_split(config, "train")
    names = {
        voc: ("aeroplane", "bicycle", "bird"),
        kitti: ("Car", "Van", "Misc"),
        wider_face: ("face",),
    }[make]
    assert dataset.class_names == names and dataset.num_records == 3
    assert dataset.sizes.tolist() == [list(SIZE)] * 3
    order = [int(dataset.file_name(n)[3]) for n in range(3)]  # tfds shuffles what it writes
    assert sorted(order) == [0, 1, 2] and dataset.image_ids.tolist() == [1, 2, 3]
    a = dataset.annotations
    for record, n in enumerate(order):
        assert dataset.image_bytes(record) == encoded(n)
        rows = a.record == record
        assert a.xywh[rows].tolist() == [list(box) for box in BOXES[n]]
        assert a.area[rows].tolist() == [box[2] * box[3] for box in BOXES[n]]
        labels = np.searchsorted(dataset.category_ids, a.category_id[rows]).tolist()
        assert labels == [0 if make is wider_face else label for label in LABELS[n]]
        difficult = [make is voc and place == 0 for place in range(len(BOXES[n]))]
        assert a.is_crowd[rows].tolist() == difficult
    assert a.id.tolist() == [1, 2, 3]
    again = load_split(config, "train")  # from the column file
    assert again.annotations.xywh.tolist() == a.xywh.tolist()
