"""Annotations of a prepared split as columns: from its records once, then from a column file."""

import logging
import sys
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from atss_jax.data import decoding
from atss_jax.data.stock_records import StockLayout, find_stock_layout, stock_objects
from atss_jax.errors import UserError

INDEX_VERSION = 1


def image_feature(builder: Any) -> str:
    """Name of the image among a record's features."""
    return "image" if _is_own_layout(builder) else find_stock_layout(builder).image


def open_split(builder: Any, split: str) -> Any:
    """The split by place; images stay encoded."""
    decoders = {image_feature(builder): tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders)


def read_categories(builder: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids and class names, ascending by id.

    Raises:
      ValueError: two categories of one id or name.
    """
    if _is_own_layout(builder):
        metadata = builder.info.metadata
        ids, names = tuple(metadata["category_ids"]), tuple(metadata["class_names"])
    else:
        layout = find_stock_layout(builder)
        ids, names = layout.category_ids, layout.class_names
    if len(ids) != len(names) or len(set(ids)) < len(ids) or len(set(names)) < len(names):
        raise UserError(
            f"categories {tuple(zip(ids, names, strict=False))}: each needs an id and a name "
            "of its own"
        )
    return ids, names


def _is_own_layout(builder: Any) -> bool:
    features = builder.info.features
    return "objects" in features and "bbox_xywh" in features["objects"]


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
    layout = None if _is_own_layout(builder) else find_stock_layout(builder)
    source = open_split(builder, split)
    heads, groups = [], []
    num_objects = 0
    for place in range(len(source)):
        record = source[place]
        image, id_, name = _head(record, place, layout)
        try:  # the limit of pixels holds when the image is decoded
            size, orientation, _ = decoding.read_header(image, sys.maxsize)
        except ValueError as error:
            raise UserError(f"image {id_} ({name}): {error}") from None
        heads.append((id_, place, size, orientation, name))
        if layout is None:
            groups.append(_own_objects(record["objects"]))
        else:
            groups.append(stock_objects(record, layout, size, 1 + num_objects))
        num_objects += len(groups[-1]["id"])
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


def _head(record: dict[str, Any], place: int, layout: StockLayout | None) -> tuple[Any, int, str]:
    """Encoded image, id and file name of a record."""
    image, id_, name = "image", "image/id", "image/filename"
    if layout is not None:
        image, id_, name = layout.image, layout.image_id, layout.file_name
    file_name = f"number {place + 1}" if name is None else record[name]
    if isinstance(file_name, bytes):
        file_name = file_name.decode()
    return record[image], place + 1 if id_ is None else int(record[id_]), str(file_name)


def _own_objects(objects: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        "id": np.asarray(objects["id"], np.int64),
        "category_id": np.asarray(objects["category_id"], np.int64),
        "xywh": np.asarray(objects["bbox_xywh"], np.float64).reshape(-1, 4),
        "area": np.asarray(objects["area"], np.float64),
        "is_crowd": np.asarray(objects["is_crowd"], bool),
    }
