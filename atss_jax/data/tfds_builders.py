"""Builders of ArrayRecord sets without TensorFlow: `shapes`, and any COCO-format set.

`load_tfds` is the one way in: it finds a prepared set below a data folder, builds `shapes` on its
first use, and opens it.
"""

import io
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from atss_jax.data import synthetic
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.records import find_builder_dir, load_records, record_features

RECORDS_VERSION = "1.0.0"
JPEG_QUALITY = 95
SHARD_BYTES = 256 * 2**20
"""About this much in a file, as in `tensorflow_datasets`."""


class Shapes(tfds.core.GeneratorBasedBuilder):
    """The procedural set of `synthetic`, as JPEG files with COCO-like ids (from 1)."""

    VERSION = tfds.core.Version(RECORDS_VERSION)
    RELEASE_NOTES = {RECORDS_VERSION: "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural shapes on textured backgrounds.",
            features=record_features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                class_names=list(synthetic.CLASS_NAMES),
                category_ids=list(range(1, len(synthetic.CLASS_NAMES) + 1)),
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in synthetic.SPLIT_SIZES}

    def _generate_examples(self, split: str = "train"):
        first_id = 1
        for index in range(synthetic.SPLIT_SIZES[split]):
            scene = synthetic.make_scene(split, index)
            count = len(scene.labels)
            sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
            yield (
                index,
                {
                    "image": io.BytesIO(_encode_jpeg(scene.image)),
                    "image/id": index + 1,
                    "image/filename": f"{split}_{index:06d}.jpg",
                    "objects": {
                        "id": np.arange(first_id, first_id + count, dtype=np.int64),
                        "category_id": scene.labels + 1,
                        "bbox_xywh": np.concatenate([scene.boxes[:, :2], sides], axis=1),
                        "area": np.prod(sides, axis=1),
                        "is_crowd": np.zeros(count, np.int64),
                    },
                },
            )
            first_id += count


def _encode_jpeg(image: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


BUILDERS = {"shapes": Shapes}
"""Sets that are built here, by name."""


def load_tfds(
    name: str,
    split: str,
    data_dir: str,
    *,
    on_error: str = "strict",
    max_bad_fraction: float = 0.01,
    exif: str = "ignore",
) -> DetectionDataset:
    """Opens a set below a data folder; `shapes` is built there on its first use (seconds).

    Args:
      name: of the set: "shapes", the name given to scripts/prepare_coco.py, or "coco/2017" for the
        stock set of `tensorflow_datasets` prepared as ArrayRecord.
      split: as in `tensorflow_datasets`.
      data_dir: folder that holds prepared sets.
      on_error: as in `records.load_records`, with `max_bad_fraction` and `exif`.
      max_bad_fraction: see `on_error`.
      exif: see `on_error`.

    Raises:
      FileNotFoundError: no such set there.
      ValueError: as in `records.load_records`.
    """
    builder_dir = find_builder_dir(name, data_dir)
    if builder_dir is None and name in BUILDERS:
        builder_dir = _build(name, data_dir)
    if builder_dir is None:
        raise FileNotFoundError(
            f"no prepared set {name!r} below data_dir={data_dir!r}. Prepare it with "
            f"scripts/prepare_coco.py, or use one that is built here: {', '.join(BUILDERS)}."
        )
    return load_records(
        builder_dir,
        split,
        name=name,
        on_error=on_error,
        max_bad_fraction=max_bad_fraction,
        exif=exif,
    )


def _build(name: str, data_dir: str) -> str:
    """Generates a set of `BUILDERS`; returns its folder."""
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)
