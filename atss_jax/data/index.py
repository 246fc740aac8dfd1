"""What was learnt of a large set, kept in a file, so that the next start takes seconds.

The file's name holds a digest of the annotations' content and of every setting that the reading
depends on, so another annotation file never meets an old index. Size and time of change of each
image file, the dropped ones included, are compared; whatever differs, is damaged or is in doubt is
read again.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import Annotations, DetectionDataset
from atss_jax.data.health import Finding, Health
from atss_jax.data.image_files import FolderSource
from atss_jax.data.splits import SplitSource
from atss_jax.files import write_whole

MIN_IMAGES = 500
"""Smaller sets are read anew each time: that takes seconds, and their images are decoded."""
VERSION = 2
_COLUMNS = ("image_ids", "sizes", "orientations", "digests")


def load_indexed(
    source: SplitSource, name: str, config: DataConfig, build: Callable[[], DetectionDataset]
) -> DetectionDataset:
    """A COCO-format set from its index, or built and kept.

    Of several processes that start together one builds, and the others wait for its index.

    Args:
      source: where the set is.
      name: of the set, for messages.
      config: the recipe's group; `index_folder` is where indexes are.
      build: reads the set.
    """
    is_local = "://" not in source.annotations + source.images
    if not (config.index_folder and is_local and os.path.isfile(source.annotations)):
        return build()
    folder = os.path.expanduser(config.index_folder)
    path = os.path.join(folder, f"{_key(source, config)}.npz")
    dataset = _read(path, source.images, name, config)
    if dataset is not None:
        return dataset
    with _lock(folder, path):
        dataset = _read(path, source.images, name, config)
        if dataset is not None:
            return dataset
        started = time.time_ns()
        dataset = build()
        if dataset.num_records > MIN_IMAGES:
            try:
                _write(path, dataset, started)
            except OSError as error:
                logging.warning("%s: not written (%s); the next start reads all again", path, error)
    return dataset


def _key(source: SplitSource, config: DataConfig) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(source.annotations, "rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    about = (VERSION, os.path.abspath(source.images), source.share)
    checks = (config.on_error, config.max_bad_fraction, config.exif, config.max_pixels)
    digest.update(repr((about, checks, config.allow_outside)).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(folder: str, path: str) -> Generator[None, None, None]:
    """Held by one process at a time; none where the folder cannot be written or locked."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(folder, exist_ok=True)
            file = stack.enter_context(open(f"{path}.lock", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logging.warning("%s: no lock (%s)", path, error)
        yield


def _stamps(source: FolderSource, count: int) -> np.ndarray:
    """int64 [N, 2]: size in bytes and time of change in ns of each file, -1 where there is none."""
    stamps = np.full((count, 2), -1, np.int64)
    for n in range(count):
        with contextlib.suppress(OSError, ValueError):  # ValueError: NUL in a name
            found = os.stat(source.path(n))
            stamps[n] = found.st_size, found.st_mtime_ns
    return stamps


def _to_bytes(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _write(path: str, dataset: DetectionDataset, started: int) -> None:
    """Writes an index, unless a file has changed since the reading started (a time in ns)."""
    health, source = dataset.health, dataset.source
    assert isinstance(source, FolderSource)
    names = [dataset.file_name(n) for n in range(dataset.num_records)] + health.dropped_files
    stamps = _stamps(FolderSource(source.folder, names), len(names))
    if stamps[:, 1].max(initial=0) >= started:
        logging.warning("%s: not written, an image file has changed meanwhile", path)
        return
    about = {
        "class_names": dataset.class_names,
        "category_ids": dataset.category_ids,
        "original_image_ids": dataset.original_image_ids,
        "original_category_ids": dataset.original_category_ids,
        "health": vars(health),
    }
    columns = {name: getattr(dataset, name) for name in _COLUMNS}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        **columns,
        **{f"annotations_{k}": v for k, v in dataset.annotations._asdict().items()},
        stamps=stamps,
        names=_to_bytes(names),
        about=_to_bytes(about),
    )
    write_whole(path, buffer.getvalue())


def _read(path: str, images: str, name: str, config: DataConfig) -> DetectionDataset | None:
    """The set as it was written; None where there is no index, or it does not hold any more."""
    if not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            found = {key: stored[key] for key in stored.files}
        about = json.loads(found["about"].tobytes())
        names = json.loads(found["names"].tobytes())
        every_file = FolderSource(images, names)
        if not np.array_equal(_stamps(every_file, len(names)), found["stamps"]):
            logging.info("%s: image files have changed, they are read again", path)
            return None
        source = FolderSource(images, names[: len(found["image_ids"])])
        return _dataset(found, about, source, name, config)
    except OSError as error:
        logging.info("%s: %s; the files are read again", path, error)
    except Exception as error:  # NumPy, zip and JSON raise many kinds on a damaged file
        logging.warning("%s: damaged (%s); the files are read again", path, error)
    return None


def _dataset(
    found: dict[str, np.ndarray],
    about: dict[str, Any],
    source: FolderSource,
    name: str,
    config: DataConfig,
) -> DetectionDataset:
    health = about["health"]
    for kind in ("bad", "odd"):
        health[kind] = Counter(health[kind])
        examples = health[f"{kind}_examples"]
        health[f"{kind}_examples"] = [Finding(*finding) for finding in examples]
    originals = (about["original_image_ids"], about["original_category_ids"])
    image_ids, category_ids = (None if ids is None else tuple(ids) for ids in originals)
    return DetectionDataset(
        name=name,
        **{column: found[column] for column in _COLUMNS},
        class_names=tuple(about["class_names"]),
        category_ids=tuple(about["category_ids"]),
        annotations=Annotations(*(found[f"annotations_{k}"] for k in Annotations._fields)),
        source=source,
        health=Health(**health),
        max_pixels=config.max_pixels,
        original_image_ids=image_ids,
        original_category_ids=category_ids,
        dropped_classes=(),
    )
