"""ArrayRecord sets in the layout of `tensorflow_datasets`, read without TensorFlow.

Two layouts: this package's own (`record_features`: exact boxes, areas, ids; made by
`scripts/prepare_coco.py` and by the `shapes` builder) and the stock `coco/2017` of
`tensorflow_datasets` prepared as ArrayRecord. Annotations are read once and kept as a column file
beside the records; images are read by index.
"""

import logging
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from atss_jax.data import decoding
from atss_jax.data.dataset import (
    Annotations,
    DetectionDataset,
    Finding,
    Health,
    check_policies,
    training_boxes,
)

COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""COCO's 80 category ids; the stock builder keeps only their order."""
COCO_BOX_DECIMALS = 2
"""COCO's boxes have two; the stock builder's relative float32 boxes are rounded back to them."""
INDEX_VERSION = 1


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
                    self._data = _open_split(builder, self._split)
        return self._data[int(self._places[index])]["image"]

    def file_name(self, index: int) -> str:
        """As in the records."""
        return self._names[index]


def _open_split(builder: Any, split: str) -> Any:
    """The split by place; images stay encoded."""
    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


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
    on_error: str = "strict",
    max_bad_fraction: float = 0.01,
    exif: str = "ignore",
) -> DetectionDataset:
    """Opens a prepared split.

    Args:
      builder_dir: folder with dataset_info.json and the records.
      split: its name, or a part as in `tensorflow_datasets` ("train[:10%]").
      name: for messages.
      on_error: "strict" stops at bad records, "skip" drops and counts them.
      max_bad_fraction: largest share of bad images, or annotations, under "skip".
      exif: as in `coco.load_coco`.

    Raises:
      ValueError: no such split, an unknown layout, bad records.
    """
    check_policies(on_error, exif, max_bad_fraction)
    builder = tfds.builder_from_directory(builder_dir)
    base = split.split("[")[0]
    if base not in builder.info.splits:
        raise ValueError(
            f"{builder_dir}: no split {base!r}; there are {', '.join(builder.info.splits)}."
        )
    columns = _cached_columns(builder, builder_dir, split)
    category_ids, class_names = _categories(builder)
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
    keep = keep_image[columns["record"]] & _usable_boxes(columns, sizes, health)
    health.settle(f"{name} {split}", on_error, max_bad_fraction)
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
    )


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


def _categories(builder: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids and class names, ascending by id."""
    if _is_own_layout(builder):
        metadata = builder.info.metadata
        return tuple(metadata["category_ids"]), tuple(metadata["class_names"])
    names = tuple(builder.info.features["objects"]["label"].names)
    if len(names) == len(COCO_CATEGORY_IDS):
        return COCO_CATEGORY_IDS, names
    return tuple(range(1, len(names) + 1)), names


def _is_own_layout(builder: Any) -> bool:
    features = builder.info.features
    if "objects" in features and "bbox_xywh" in features["objects"]:
        return True
    if "objects" in features and {"bbox", "label", "id"} <= set(features["objects"].keys()):
        return False
    raise ValueError(
        f"{builder.info.full_name}: records with fields {sorted(features)} are neither this "
        "package's nor those of coco/2017. Prepare the data with scripts/prepare_coco.py."
    )


def _cached_columns(builder: Any, builder_dir: str, split: str) -> dict[str, np.ndarray]:
    """The columns of a split: read from the column file, or from all records once."""
    path = epath.Path(builder_dir) / f"columns-{split}.v{INDEX_VERSION}.npz"
    is_whole = split.isidentifier()
    if is_whole and path.exists():
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = {key: stored[key] for key in stored.files}
        if len(columns["image_id"]) == builder.info.splits[split].num_examples:
            return columns
    columns = _read_columns(builder, split)
    if is_whole:
        part = path.with_name(path.name + f".part{threading.get_native_id()}")
        try:
            with part.open("wb") as file:
                np.savez(file, **columns)  # type: ignore[arg-type]
            part.replace(path)
        except OSError as error:
            logging.warning("%s: not written (%s); records are read again each time", path, error)
    return columns


def _read_columns(builder: Any, split: str) -> dict[str, np.ndarray]:
    """Reads every record once; sorted by image id."""
    own = _is_own_layout(builder)
    source = _open_split(builder, split)
    heads, groups = [], []
    for place in range(len(source)):
        record = source[place]
        size, orientation, _ = decoding.read_header(record["image"])
        name = record["image/filename"]
        name = name.decode() if isinstance(name, bytes) else str(name)
        heads.append((int(record["image/id"]), place, size, orientation, name))
        objects = record["objects"]
        groups.append(_own_objects(objects) if own else _stock_objects(objects, size))
    order = sorted(range(len(heads)), key=lambda n: heads[n][0])
    heads, groups = [heads[n] for n in order], [groups[n] for n in order]
    counts = [len(group["id"]) for group in groups]
    joined = {
        key: np.concatenate([group[key] for group in groups])
        if groups
        else np.zeros((0, 4) if key == "xywh" else 0)
        for key in ("id", "category_id", "xywh", "area", "is_crowd")
    }
    return {
        "image_id": np.array([h[0] for h in heads], np.int64),
        "place": np.array([h[1] for h in heads], np.int64),
        "size": np.array([h[2] for h in heads], np.int32).reshape(-1, 2),
        "orientation": np.array([h[3] for h in heads], np.int32),
        "name": np.array([h[4] for h in heads], np.str_),
        "record": np.repeat(np.arange(len(heads), dtype=np.int32), counts),
        **joined,
    }


def _own_objects(objects: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        "id": np.asarray(objects["id"], np.int64),
        "category_id": np.asarray(objects["category_id"], np.int64),
        "xywh": np.asarray(objects["bbox_xywh"], np.float64).reshape(-1, 4),
        "area": np.asarray(objects["area"], np.float64),
        "is_crowd": np.asarray(objects["is_crowd"], bool),
    }


def _stock_objects(objects: dict[str, Any], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """COCO's annotations from relative yxyx boxes and dense labels; areas are whole px^2 there."""
    relative = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    yxyx = np.round(relative * np.tile(size, 2), COCO_BOX_DECIMALS)
    corner, far = yxyx[:, 1::-1], yxyx[:, 3:1:-1]
    extent = np.round(far - corner, COCO_BOX_DECIMALS)
    labels = np.asarray(objects["label"], np.int64)
    return {
        "id": np.asarray(objects["id"], np.int64),
        "category_id": np.array(COCO_CATEGORY_IDS, np.int64)[labels],
        "xywh": np.concatenate([corner, extent], axis=1),
        "area": np.asarray(objects["area"], np.float64),
        "is_crowd": np.asarray(objects["is_crowd"], bool),
    }
