"""Annotations of a prepared split as columns: from its records once, then from a column file."""

import logging
import sys
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from atss_jax.data import decoding
from atss_jax.errors import UserError

COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""COCO's 80 category ids; the stock builder keeps only their order."""
COCO_BOX_DECIMALS = 2
"""COCO's boxes have two; the stock builder's relative float32 boxes are rounded back to them."""
INDEX_VERSION = 1


def open_split(builder: Any, split: str) -> Any:
    """The split by place; images stay encoded."""
    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def read_categories(builder: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids and class names, ascending by id.

    Raises:
      ValueError: two categories of one id or name.
    """
    if _is_own_layout(builder):
        metadata = builder.info.metadata
        ids, names = tuple(metadata["category_ids"]), tuple(metadata["class_names"])
        if len(ids) != len(names) or len(set(ids)) < len(ids) or len(set(names)) < len(names):
            raise UserError(
                f"categories {tuple(zip(ids, names, strict=False))}: each needs an id and a name "
                "of its own"
            )
        return ids, names
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
    raise UserError(
        f"{builder.info.full_name}: records with fields {sorted(features)} are neither this "
        "package's nor those of coco/2017. Prepare the data with scripts/prepare_coco.py."
    )


def cached_columns(builder: Any, builder_dir: str, split: str) -> dict[str, np.ndarray]:
    """The columns of a split: read from the column file, or from all records once."""
    path = epath.Path(builder_dir) / f"columns-{split}.v{INDEX_VERSION}.npz"
    is_whole = split.isidentifier()
    if is_whole and path.exists():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                columns = {key: stored[key] for key in stored.files}
            if len(columns["image_id"]) == builder.info.splits[split].num_examples:
                return columns
        except Exception as error:  # NumPy and zip raise many kinds on a damaged file
            logging.warning("%s: damaged (%s); the records are read again", path, error)
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
    own, category_ids = _is_own_layout(builder), np.array(read_categories(builder)[0], np.int64)
    source = open_split(builder, split)
    heads, groups = [], []
    for place in range(len(source)):
        record = source[place]
        name = record["image/filename"]
        name = name.decode() if isinstance(name, bytes) else str(name)
        try:  # the limit of pixels holds when the image is decoded
            size, orientation, _ = decoding.read_header(record["image"], sys.maxsize)
        except ValueError as error:
            raise UserError(f"image {record['image/id']} ({name}): {error}") from None
        heads.append((int(record["image/id"]), place, size, orientation, name))
        objects = record["objects"]
        groups.append(_own_objects(objects) if own else _stock_objects(objects, size, category_ids))
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


def _stock_objects(
    objects: dict[str, Any], size: tuple[int, int], category_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """COCO's annotations from relative yxyx boxes and dense labels; areas are whole px^2 there.

    A label that is none becomes the category id -1, which no class has.
    """
    relative = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    yxyx = np.round(relative * np.tile(size, 2), COCO_BOX_DECIMALS)
    corner, far = yxyx[:, 1::-1], yxyx[:, 3:1:-1]
    extent = np.round(far - corner, COCO_BOX_DECIMALS)
    labels = np.asarray(objects["label"], np.int64)
    return {
        "id": np.asarray(objects["id"], np.int64),
        "category_id": np.where(
            (labels >= 0) & (labels < len(category_ids)),
            category_ids[labels.clip(0, len(category_ids) - 1)],
            -1,
        ),
        "xywh": np.concatenate([corner, extent], axis=1),
        "area": np.asarray(objects["area"], np.float64),
        "is_crowd": np.asarray(objects["is_crowd"], bool),
    }
