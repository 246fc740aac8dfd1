"""Builders of ArrayRecord sets without TensorFlow: the `shapes`, and any COCO-format set.

`load_tfds` is the one way in: it finds a prepared set below a data folder, builds one of the
`shapes` on its first use, and opens it.
"""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from atss_jax.data import synthetic
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.records import find_builder_dir, load_records, record_features
from atss_jax.errors import MissingFileError, UserError

RECORDS_VERSION = "1.0.0"
JPEG_QUALITY = 95
SHARD_BYTES = 256 * 2**20
"""About this much in a file, as in `tensorflow_datasets`."""


class Shapes(tfds.core.GeneratorBasedBuilder):
    """The procedural set of `synthetic`, as JPEG files with COCO-like ids (from 1)."""

    VERSION = tfds.core.Version(RECORDS_VERSION)
    RELEASE_NOTES = {RECORDS_VERSION: "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        names = synthetic.STYLES[self.name].class_names
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural shapes on textured backgrounds.",
            features=record_features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                class_names=list(names),
                category_ids=list(range(1, len(names) + 1)),
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in synthetic.SPLIT_SIZES}

    def _generate_examples(self, split: str = "train"):
        first_id = 1
        for index in range(synthetic.SPLIT_SIZES[split]):
            scene = synthetic.make_scene(split, index, self.name)
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


class ShapesCrowded(Shapes):
    """The procedural set for comparing assigners: five octaves, crowded, elongated."""


def _encode_jpeg(image: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


BUILDERS = {"shapes": Shapes, "shapes_crowded": ShapesCrowded}
"""Sets that are built here, by name."""


def load_tfds(
    name: str,
    split: str,
    data_dir: str,
    config: DataConfig | None = None,
) -> DetectionDataset:
    """Opens a set below a data folder; `shapes` are built there on their first use (seconds).

    Args:
      name: of the set: "shapes", "shapes_crowded", the name given to scripts/prepare_coco.py, or
        that of a stock detection set ("coco/2017", "voc/2012") prepared as ArrayRecord.
      split: as in `tensorflow_datasets`.
      data_dir: folder that holds prepared sets.
      config: as in `records.load_records`.

    Raises:
      FileNotFoundError: no such set there.
      ValueError: as in `records.load_records`.
    """
    builder_dir = find_builder_dir(name, data_dir)
    if builder_dir is None and name in BUILDERS:
        builder_dir = _build(name, data_dir)
    if builder_dir is None:
        raise MissingFileError(
            f"no prepared set {name!r} below data_dir={data_dir!r}. Prepare it with "
            f"scripts/prepare_coco.py, or use one that is built here: {', '.join(BUILDERS)}."
        )
    return load_records(builder_dir, split, name=name, config=config)


def _build(name: str, data_dir: str) -> str:
    """Generates a set of `BUILDERS`; returns its folder.

    Processes may do so at the same time in one folder: every one makes the same files, and the
    first to finish moves them to their place.
    """
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except OSError:
        if find_builder_dir(name, data_dir) is None:
            raise
    return str(builder.data_path)


def prepare_records(
    dataset: DetectionDataset,
    data_dir: str,
    name: str,
    split: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Writes a data set as ArrayRecord files that `load_tfds` and `tensorflow_datasets` read.

    Called again after an interruption it goes on with the first file that is not complete.

    Args:
      dataset: what to write; it has been checked when it was read.
      data_dir: folder for prepared sets.
      name: of the set: small letters, digits and underscores.
      split: of the set; other splits already there stay.
      shard_bytes: about the size of a file.
      progress: told (images done, images in all).

    Returns:
      The folder of the set.

    Raises:
      ValueError: an unusable name; other data under the same name and split.
    """
    for what, value in (("name", name), ("split", split)):
        if not re.fullmatch("[a-z][a-z0-9_]*", value):
            raise UserError(f"{what}={value!r}: use small letters, digits and underscores.")
    for what, ids in (
        ("image", dataset.original_image_ids),
        ("category", dataset.original_category_ids),
    ):
        if ids is not None:
            logging.warning(
                "%s: records hold 64-bit integers, so the %s ids (%s, ...) become numbers from 1, "
                "also in the results of runs on these records",
                *(dataset.name, what, ids[0]),
            )
    folder = epath.Path(data_dir) / name / RECORDS_VERSION
    folder.mkdir(parents=True, exist_ok=True)
    _check_classes(dataset, folder)
    _claim_split(dataset, folder, split, shard_bytes)
    total = dataset.num_records
    sizes = [len(dataset.image_bytes(n)) for n in range(min(total, 100))]
    num_shards = max(1, min(total, round(float(np.mean(sizes)) * total / shard_bytes)))
    bounds = np.linspace(0, total, num_shards + 1).astype(int).tolist()
    features = record_features()
    for shard, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        path = folder / f"{name}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"
        if path.exists():
            progress(last, total)
        else:
            part = path.with_name("unfinished-" + path.name)
            writer = ArrayRecordWriter(os.fspath(part), "group_size:1")
            for n in range(first, last):
                writer.write(features.serialize_example(_record(dataset, n)))
                progress(n + 1, total)
            writer.close()
            part.rename(path)
    lengths = np.diff(bounds).tolist()
    _write_metadata(dataset, folder, name, split, lengths)
    for old in folder.glob(f"columns-{split}.*"):
        old.unlink()
    return os.fspath(folder)


def _claim_split(
    dataset: DetectionDataset, folder: epath.Path, split: str, shard_bytes: int
) -> None:
    """Refuses to go on with files that were begun from other data."""
    digest = hashlib.sha256(repr((shard_bytes, dataset.class_names)).encode())
    for column in (dataset.image_ids, dataset.sizes, *dataset.annotations):
        digest.update(np.ascontiguousarray(column).tobytes())
    path = folder / f"source-{split}.sha256"
    if path.exists() and path.read_text() != digest.hexdigest():
        raise UserError(
            f"{folder} holds split {split!r} of other data. Delete its files there, or use another "
            "name."
        )
    path.write_text(digest.hexdigest())


def _record(dataset: DetectionDataset, index: int) -> dict[str, Any]:
    """One image with all its annotations, for `record_features`."""
    a = dataset.annotations
    first, last = np.searchsorted(a.record, [index, index + 1])
    rows = slice(first, last)
    return {
        "image": io.BytesIO(dataset.image_bytes(index)),
        "image/id": int(dataset.image_ids[index]),
        "image/filename": dataset.file_name(index),
        "objects": {
            "id": a.id[rows],
            "category_id": a.category_id[rows],
            "bbox_xywh": a.xywh[rows],
            "area": a.area[rows],
            "is_crowd": a.is_crowd[rows].astype(np.int64),
        },
    }


def _check_classes(dataset: DetectionDataset, folder: epath.Path) -> None:
    """Raises UserError where splits that are complete there have other classes, or other ids."""
    if not (folder / "dataset_info.json").exists():
        return
    metadata = tfds.builder_from_directory(os.fspath(folder)).info.metadata or {}
    there = [tuple(metadata.get(key, ())) for key in ("class_names", "category_ids")]
    ours = [dataset.class_names, dataset.category_ids]
    if there != ours:
        raise UserError(
            f"{folder} holds splits with other classes, {there[0]} with ids {there[1]}, than "
            f"{ours[0]} with ids {ours[1]}. Use another name, or the same classes and ids in both."
        )


def _write_metadata(
    dataset: DetectionDataset, folder: epath.Path, name: str, split: str, lengths: list[int]
) -> None:
    """dataset_info.json and its companions, over all splits that are complete there."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix="array_record"
    )
    complete: dict[str, list[int]] = {}
    if (folder / "dataset_info.json").exists():
        info = tfds.builder_from_directory(os.fspath(folder)).info
        complete = {n: list(s.shard_lengths) for n, s in info.splits.items()}
    complete[split] = lengths
    splits = [
        tfds.core.SplitInfo(
            name=n,
            shard_lengths=shards,
            num_bytes=0,
            filename_template=template.replace(split=n),
        )
        for n, shards in sorted(complete.items())
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=record_features(),
        split_infos=splits,
        version=RECORDS_VERSION,
        filename_template=template,
        check_data=False,
        description="A COCO-format set, prepared by scripts/prepare_coco.py.",
        metadata=tfds.core.MetadataDict(
            class_names=list(dataset.class_names), category_ids=list(dataset.category_ids)
        ),
    )
