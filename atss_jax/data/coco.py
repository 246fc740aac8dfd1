"""A COCO-format JSON file and an image folder: read, checked, every oddity counted.

Paths may be local or anything that `etils.epath` reads. Bad records stop the run or are dropped
(`on_error`); nothing is repaired silently.
"""

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from atss_jax.data import decoding
from atss_jax.data.annotation_checks import count_oddities, is_int, is_number, read_annotations
from atss_jax.data.dataset import DetectionDataset, Finding, Health, check_policies

FULL_DECODE_LIMIT = 2000
"""Sets of at most this many images are decoded whole before training, as are all sets under
`on_error="skip"`; of larger ones headers are read, and an image that does not decode stops the run
when it is met."""


class FolderSource:
    """Image files below a folder."""

    def __init__(self, folder: str, names: Sequence[str]):
        self._folder, self._names = folder.rstrip("/"), list(names)
        self._is_local = "://" not in folder

    def path(self, index: int) -> str:
        """Where the file is."""
        return f"{self._folder}/{self._names[index]}"

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        if self._is_local:
            with open(self.path(index), "rb") as file:
                return file.read()
        return epath.Path(self.path(index)).read_bytes()

    def file_name(self, index: int) -> str:
        """As in the JSON."""
        return self._names[index]


class _Image(NamedTuple):
    id: int
    file_name: str
    size: tuple[int, int] | None
    """(h, w) as the JSON says; None where it does not."""


def load_coco(
    annotations: str,
    images: str,
    *,
    name: str,
    on_error: str = "strict",
    max_bad_fraction: float = 0.01,
    exif: str = "ignore",
    class_names: tuple[str, ...] | None = None,
) -> DetectionDataset:
    """Reads a COCO-format detection set.

    Args:
      annotations: path of the JSON file.
      images: path of the folder that its file names are relative to.
      name: of the set, for messages.
      on_error: "strict" stops at bad records, "skip" drops and counts them.
      max_bad_fraction: largest share of bad images, or annotations, under "skip".
      exif: EXIF orientation: "ignore" takes pixels as stored (COCO's annotations were made so),
        "apply" turns the image (when the annotations were made on the turned one), "error" makes
        any orientation but 1 a bad image.
      class_names: expected names by dense label (a training set's); None takes the file's.

    Returns:
      The set, sorted by image id; images without boxes included.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: malformed JSON, bad records, other classes than expected.
    """
    check_policies(on_error, exif, max_bad_fraction)
    content = _read_json(annotations)
    category_ids, names = _read_categories(content["categories"], annotations)
    if class_names is not None and names != tuple(class_names):
        raise ValueError(
            f"{annotations}: categories {names} differ from the expected {tuple(class_names)}. "
            "Training and validation files need the same categories."
        )
    if not epath.Path(images).is_dir():
        raise FileNotFoundError(f"image folder {images!r} does not exist. Check the path.")
    if not content["images"]:
        raise ValueError(f"{annotations}: no image is listed. Check that it is the right file.")
    health = Health(num_images=len(content["images"]), num_annotations=len(content["annotations"]))
    listed = _read_images(content["images"], health)
    decode_all = on_error == "skip" or len(listed) <= FULL_DECODE_LIMIT
    kept, sizes, orientations = _check_files(listed, images, exif, decode_all, health)
    columns = read_annotations(
        content["annotations"],
        {image.id: n for n, image in enumerate(kept)},
        names=[image.file_name for image in kept],
        sizes=sizes,
        every_image_id={image.id for image in listed},
        category_ids=set(category_ids),
        health=health,
    )
    health.settle(annotations, on_error, max_bad_fraction)
    if not kept:
        raise ValueError(f"{annotations}: no image is left ({health.summary()}).")
    dataset = DetectionDataset(
        name=name,
        image_ids=np.array([image.id for image in kept], np.int64),
        sizes=sizes,
        orientations=orientations,
        class_names=names,
        category_ids=category_ids,
        annotations=columns,
        source=FolderSource(images, [image.file_name for image in kept]),
        health=health,
    )
    count_oddities(dataset)
    if health.bad:
        logging.warning("%s: %s", annotations, health.summary())
    return dataset


def _read_json(path: str) -> dict[str, Any]:
    """The parsed file, with its three lists."""
    try:
        text = epath.Path(path).read_text()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(
            f"annotation file {path!r} does not exist. Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a JSON text file ({error}).") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: malformed JSON ({error}). Is the file complete?") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f'{path}: no list "{key}" at the top. A COCO detection file has "images", '
                '"annotations" and "categories".'
            )
    return content


def _read_categories(entries: list, path: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names, ascending by id. Errors here are never skipped: labels depend on them."""
    names: dict[int, str] = {}
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        id_, name = fields.get("id"), fields.get("name")
        if not is_int(id_) or not isinstance(name, str):
            raise ValueError(f"{path}: category {entry!r} needs an integer id and a name.")
        if id_ in names:
            raise ValueError(f"{path}: category id {id_} stands twice ({names[id_]!r}, {name!r}).")
        names[id_] = name
    if not names:
        raise ValueError(f"{path}: no categories. List at least one.")
    ids = tuple(sorted(names))
    return ids, tuple(names[i] for i in ids)


def _read_images(entries: list, health: Health) -> list[_Image]:
    """The well-formed image entries, ascending by id."""
    found: dict[int, _Image] = {}
    for place, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        id_, file_name = fields.get("id"), fields.get("file_name")
        about = f"image {id_} ({file_name})"
        if not is_int(id_):
            kind, message = "image_id", f"images[{place}] ({file_name}): id {id_!r} is no integer"
        elif not isinstance(file_name, str) or not file_name:
            kind, message = "image_file_name", f"image {id_}: file_name {file_name!r} is no name"
        elif id_ in found:
            first = found[id_].file_name
            kind, message = "duplicate_image_id", f"{about}: its id is that of {first!r} as well"
        elif not _has_usable_size(fields):
            size = f"{fields.get('width')!r} x {fields.get('height')!r}"
            kind, message = "image_size", f"{about}: size {size} (w x h) is not positive integers"
        else:
            size = None
            if fields.get("height") is None:
                message = f"{about}: no size in the JSON, taken from the file"
                health.add_odd(Finding("image_size_missing", message, id_))
            else:
                size = (int(fields["height"]), int(fields["width"]))
            found[id_] = _Image(id_, file_name, size)
            continue
        health.add_bad(Finding(kind, message, id_ if is_int(id_) else None), is_image=True)
    return [found[i] for i in sorted(found)]


def _has_usable_size(fields: dict) -> bool:
    """Both sides are positive integers, or both are missing."""
    sides = (fields.get("height"), fields.get("width"))
    if sides == (None, None):
        return True
    return all(is_number(s) and math.isfinite(s) and s >= 1 and s == int(s) for s in sides)


def _check_files(
    listed: list[_Image], folder: str, exif: str, decode_all: bool, health: Health
) -> tuple[list[_Image], np.ndarray, np.ndarray]:
    """Images whose file is there, readable and of the size that the JSON says.

    Returns:
      The good ones, their (h, w) px and EXIF orientations after the policy.
    """
    source = FolderSource(folder, [image.file_name for image in listed])

    def check(index: int) -> tuple[tuple[int, int], int] | Finding:
        return _check_file(listed[index], source, index, exif, decode_all)

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(check, range(len(listed)), chunksize=64))
    kept, sizes, orientations = [], [], []
    for image, result in zip(listed, results, strict=True):
        if isinstance(result, Finding):
            health.add_bad(result, is_image=True)
            continue
        kept.append(image)
        sizes.append(result[0])
        orientations.append(result[1])
    return (
        kept,
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array(orientations, np.int32),
    )


def _check_file(
    image: _Image, source: FolderSource, index: int, exif: str, decode: bool
) -> tuple[tuple[int, int], int] | Finding:
    """(h, w) and orientation of one file, or what is wrong with it."""
    about = f"image {image.id} ({source.path(index)})"
    try:
        data = source.read(index)
        stored, orientation, _ = decoding.read_header(data)
        if decoding.is_truncated_jpeg(data):
            return Finding("image_truncated", f"{about}: the file is cut off", image.id)
        if decode:
            decoding.decode(data)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Finding("image_missing", f"{about}: no such file", image.id)
    except OSError as error:
        return Finding("image_unreadable", f"{about}: {error}", image.id)
    except ValueError as error:
        return Finding("image_undecodable", f"{about}: {error}", image.id)
    if exif == "error" and orientation != 1:
        message = f"{about}: EXIF orientation {orientation}, and data.exif is 'error'"
        return Finding("image_orientation", message, image.id)
    orientation = orientation if exif == "apply" else 1
    seen = decoding.oriented_size(stored, orientation)
    if image.size is not None and image.size != seen:
        height, width = image.size
        message = (
            f"{about}: the JSON says {width}x{height} (w x h), the file is {seen[1]}x{seen[0]} "
            f"with data.exif={exif!r}"
        )
        return Finding("image_size_mismatch", message, image.id)
    return seen, orientation
