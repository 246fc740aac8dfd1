"""ArrayRecord sets in the layout of `tensorflow_datasets`, read without TensorFlow.

Two layouts: this package's own (`record_features`: exact boxes, areas, ids; made by
`scripts/prepare_coco.py` and by the `shapes` builder) and stock detection sets of
`tensorflow_datasets` prepared as ArrayRecord (`stock_records`). Annotations are read once and kept
as a column file beside the records; images are read by index.
"""

import contextlib
import logging
import threading
from collections.abc import Generator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import (
    Annotations,
    DetectionDataset,
    training_boxes,
)
from atss_jax.data.health import Finding, Health
from atss_jax.data.record_columns import (
    cached_columns,
    image_feature,
    open_split,
    read_categories,
)
from atss_jax.errors import UserError


def record_features() -> tfds.features.FeaturesDict:
    """What a record of this package holds: the image file as it was, and exact annotations."""

    def exact(*shape: int | None) -> tfds.features.Tensor:
        # "bytes" keeps all 64 bits; without it float64 is stored as float32
        return tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="bytes")

    def integers() -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None,), dtype=np.int64)

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/id": np.int64,
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.FeaturesDict(
                {
                    "id": integers(),
                    "category_id": integers(),
                    "bbox_xywh": exact(None, 4),
                    "area": exact(None),
                    "is_crowd": integers(),
                }
            ),
        }
    )


class RecordSource:
    """Images of a prepared split, by place in the files."""

    def __init__(self, builder_dir: str, split: str, places: np.ndarray, names: list[str]):
        self._builder_dir, self._split = builder_dir, split
        self._places, self._names = places, names
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._data: Any = None
        self._image = "image"

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: each process opens its own."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_data")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens nothing until the first read."""
        self.__dict__.update(state)
        self._open()

    def read(self, index: int) -> bytes:
        """The encoded image."""
        if self._data is None:
            with self._lock:
                if self._data is None:
                    builder = tfds.builder_from_directory(self._builder_dir)
                    self._image = image_feature(builder)
                    self._data = open_split(builder, self._split)
        return self._data[int(self._places[index])][self._image]

    def file_name(self, index: int) -> str:
        """As in the records."""
        return self._names[index]


def find_builder_dir(name: str, data_dir: str) -> str | None:
    """Folder of the newest prepared version of a set; None where there is none."""
    base = epath.Path(data_dir) / name
    if not base.is_dir():
        return None
    if (base / "dataset_info.json").exists():
        return str(base)
    versions = [p for p in base.iterdir() if (p / "dataset_info.json").exists()]
    numbered = [p for p in versions if all(part.isdigit() for part in p.name.split("."))]
    if not numbered:
        return None
    return str(max(numbered, key=lambda p: tuple(int(part) for part in p.name.split("."))))


def load_records(
    builder_dir: str,
    split: str,
    *,
    name: str,
    config: DataConfig | None = None,
) -> DetectionDataset:
    """Opens a prepared split.

    Args:
      builder_dir: folder with dataset_info.json and the records.
      split: its name, or a part as in `tensorflow_datasets` ("train[:10%]").
      name: for messages.
      config: what is done with bad records and EXIF orientations; None for the defaults.

    Raises:
      ValueError: no such split, an unknown layout, bad records.
    """
    config = config or DataConfig()
    exif = config.exif
    with _named_errors(builder_dir):
        builder = tfds.builder_from_directory(builder_dir)
    base = split.split("[")[0]
    if base not in builder.info.splits:
        raise UserError(
            f"{builder_dir}: no split {base!r}; there are {', '.join(builder.info.splits)}."
        )
    with _named_errors(f"{builder_dir}, split {split!r}"):
        category_ids, class_names = read_categories(builder)
        columns = cached_columns(builder, builder_dir, split)
    health = Health(num_images=len(columns["image_id"]), num_annotations=len(columns["id"]))
    keep_image = np.ones(len(columns["image_id"]), bool)
    orientations = columns["orientation"] if exif == "apply" else np.ones_like(keep_image, np.int32)
    if exif == "error":
        for n in np.flatnonzero(columns["orientation"] != 1):
            id_ = int(columns["image_id"][n])
            message = (
                f"image {id_} ({columns['name'][n]}): EXIF orientation "
                f"{columns['orientation'][n]}, and data.exif is 'error'"
            )
            health.add_bad(Finding("image_orientation", message, id_), is_image=True)
            keep_image[n] = False
    sizes = np.where(orientations[:, None] >= 5, columns["size"][:, ::-1], columns["size"])
    is_known = _known_categories(columns, category_ids, health)
    keep = keep_image[columns["record"]] & is_known & _usable_boxes(columns, sizes, health)
    health.settle(f"{name} {split}", config.on_error, config.max_bad_fraction)
    if health.bad:
        logging.warning("%s %s: %s", name, split, health.summary())
    names = columns["name"][keep_image].tolist()
    return DetectionDataset(
        name=f"{name}/{split}",
        image_ids=columns["image_id"][keep_image],
        sizes=sizes[keep_image],
        orientations=orientations[keep_image],
        class_names=class_names,
        category_ids=category_ids,
        annotations=Annotations(
            record=(np.cumsum(keep_image) - 1)[columns["record"][keep]].astype(np.int32),
            id=columns["id"][keep],
            category_id=columns["category_id"][keep],
            xywh=columns["xywh"][keep],
            area=columns["area"][keep],
            is_crowd=columns["is_crowd"][keep],
        ),
        source=RecordSource(builder_dir, split, columns["place"][keep_image], names),
        health=health,
        max_pixels=config.max_pixels,
    )


@contextlib.contextmanager
def _named_errors(about: str) -> Generator[None, None, None]:
    """Gives damaged records an error with their path: TFDS and ArrayRecord raise many kinds."""
    try:
        yield
    except Exception as error:
        if about.split(",")[0] in str(error):
            raise
        text = str(error).strip().split("\n")[0]
        raise UserError(
            f"{about}: the records cannot be read ({type(error).__name__}: {text}). Prepare them "
            "again, with scripts/prepare_coco.py or their builder."
        ) from error


def _known_categories(
    columns: dict[str, np.ndarray], category_ids: tuple[int, ...], health: Health
) -> np.ndarray:
    """Mask of annotations of a known category; the others are counted as bad."""
    known = np.isin(columns["category_id"], category_ids)
    for n in np.flatnonzero(~known):
        id_ = int(columns["image_id"][columns["record"][n]])
        message = (
            f"annotation {columns['id'][n]} of image {id_} "
            f"({columns['name'][columns['record'][n]]}): category_id {columns['category_id'][n]} "
            "is not among the categories"
        )
        health.add_bad(Finding("unknown_category", message, id_), is_image=False)
    return known


def _usable_boxes(columns: dict[str, np.ndarray], sizes: np.ndarray, health: Health) -> np.ndarray:
    """Mask of annotations with something inside their image; the others are counted as bad.

    COCO's own train2017 has two boxes without height.
    """
    boxes = training_boxes(columns["xywh"], sizes[columns["record"]])
    sides = np.minimum(boxes[:, 2:] - boxes[:, :2], columns["xywh"][:, 2:])
    good = (sides[:, 0] > 0) & (sides[:, 1] > 0)
    for n in np.flatnonzero(~good):
        id_ = int(columns["image_id"][columns["record"][n]])
        message = (
            f"annotation {columns['id'][n]} of image {id_} "
            f"({columns['name'][columns['record'][n]]}): bbox {columns['xywh'][n].tolist()} "
            "(x, y, w, h) has no area inside the image"
        )
        health.add_bad(Finding("box_empty", message, id_), is_image=False)
    return good
