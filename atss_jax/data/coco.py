"""A COCO-format JSON file and an image folder: read, checked, every oddity counted.

Paths may be local or anything that `etils.epath` reads. Bad records stop the run or are dropped
(`on_error`); nothing is repaired silently.
"""

import json
import logging
from typing import Any

import numpy as np
from etils import epath

from atss_jax.data.annotation_checks import (
    Known,
    count_oddities,
    is_finite,
    is_number,
    read_annotations,
)
from atss_jax.data.dataset import DetectionDataset, Finding, Health, check_policies
from atss_jax.data.decoding import MAX_PIXELS
from atss_jax.data.file_names import name_of_url
from atss_jax.data.identifiers import is_id, shown, sort_key, to_int64
from atss_jax.data.image_files import FilePolicy, FolderSource, ListedImage, check_files
from atss_jax.errors import MissingFileError, UserError

FULL_DECODE_LIMIT = 2000
"""Sets of at most this many images are decoded whole before training, as are all sets under
`on_error="skip"`; of larger ones headers are read, and an image that does not decode stops the run
when it is met."""


def load_coco(
    annotations: str,
    images: str,
    *,
    name: str,
    on_error: str = "strict",
    max_bad_fraction: float = 0.01,
    exif: str = "ignore",
    class_names: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
    allow_outside: bool = False,
    without_annotations: bool = False,
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
      max_pixels: an image of more is a bad one, before it is decoded.
      allow_outside: whether file names may leave the folder (absolute ones, "..").
      class_names: expected names by dense label (a training set's); None takes the file's.
      without_annotations: the file may lack its list of annotations, as COCO's test-dev does.

    Returns:
      The set, sorted by image id; images without boxes included.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: malformed JSON, bad records, other classes than expected.
    """
    check_policies(on_error, exif, max_bad_fraction)
    content = _read_json(annotations, without_annotations)
    category_ids, names = _read_categories(content["categories"], annotations)
    if class_names is not None and names != tuple(class_names):
        raise UserError(
            f"{annotations}: categories {names} differ from the expected {tuple(class_names)}. "
            "Training and validation files need the same categories."
        )
    if not epath.Path(images).is_dir():
        raise MissingFileError(f"image folder {images!r} does not exist. Check the path.")
    if not content["images"]:
        raise UserError(f"{annotations}: no image is listed. Check that it is the right file.")
    health = Health(num_images=len(content["images"]), num_annotations=len(content["annotations"]))
    listed, every_image_id = _read_images(content["images"], health)
    decode_all = on_error == "skip" or len(listed) <= FULL_DECODE_LIMIT
    policy = FilePolicy(exif, decode_all, max_pixels, allow_outside)
    kept, sizes, orientations = check_files(listed, images, policy, health)
    known = Known(
        record_of={image.id: n for n, image in enumerate(kept)},
        names=[image.file_name for image in kept],
        sizes=sizes,
        every_image_id=every_image_id,
        label_of={id_: label for label, id_ in enumerate(category_ids)},
    )
    inside_categories = to_int64(category_ids)
    columns = read_annotations(content["annotations"], known, inside_categories.inside, health)
    health.settle(annotations, on_error, max_bad_fraction)
    if not kept:
        raise UserError(f"{annotations}: no image is left ({health.summary()}).")
    _check_units(columns.xywh, annotations)
    image_ids = to_int64([image.id for image in kept])
    dataset = DetectionDataset(
        name=name,
        image_ids=image_ids.inside,
        sizes=sizes,
        orientations=orientations,
        class_names=names,
        category_ids=tuple(inside_categories.inside.tolist()),
        annotations=columns,
        source=FolderSource(images, [image.file_name for image in kept]),
        health=health,
        max_pixels=max_pixels,
        original_image_ids=image_ids.originals,
        original_category_ids=inside_categories.originals,
    )
    count_oddities(dataset)
    if health.bad:
        logging.warning("%s: %s", annotations, health.summary())
    return dataset


def _read_json(path: str, without_annotations: bool) -> dict[str, Any]:
    """The parsed file, with its three lists."""
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")  # a byte order mark is fine
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(
            f"annotation file {path!r} does not exist. Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a JSON text file ({error}).") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: malformed JSON ({error}). Is the file complete?") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(f"{path}: not an annotation file ({error}).") from None
    if without_annotations and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f'{path}: no list "{key}" at the top. A COCO detection file has "images", '
                '"annotations" and "categories". To get detections of images without annotations: '
                "--mode=eval --config.eval.format_only=True."
            )
    return content


def _read_categories(entries: list, path: str) -> tuple[tuple[int | str, ...], tuple[str, ...]]:
    """Ids and names, ascending by id. Errors here are never skipped: labels depend on them."""
    names: dict[int | str, str] = {}
    id_of: dict[str, int | str] = {}
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        id_, name = fields.get("id"), fields.get("name")
        if not is_id(id_) or not isinstance(name, str):
            raise UserError(
                f"{path}: category {shown(entry)} needs an id (an integer or text) and a name."
            )
        if id_ in names:
            raise UserError(
                f"{path}: category id {shown(id_)} appears twice ({names[id_]!r}, {name!r})."
            )
        if name in id_of:
            raise UserError(
                f"{path}: categories {shown(id_of[name])} and {shown(id_)} are both named "
                f"{name!r}. Give each its own name, or merge them."
            )
        names[id_], id_of[name] = name, id_
    if not names:
        raise UserError(f"{path}: no categories. List at least one.")
    ids = tuple(sorted(names, key=sort_key))
    return ids, tuple(names[i] for i in ids)


def _check_units(xywh: np.ndarray, path: str) -> None:
    """Refuses boxes in 0..1, on which a detector would learn nothing.

    Raises:
      ValueError: no box reaches further than a pixel.
    """
    if len(xywh) and (xywh[:, :2] + xywh[:, 2:] <= 1).all():
        raise UserError(
            f"{path}: every bbox lies within 0..1, as if relative to its image. COCO's are px "
            "(x, y, width, height): multiply them by the image's sides."
        )


def _read_images(entries: list, health: Health) -> tuple[list[ListedImage], set[int | str]]:
    """The well-formed image entries ascending by id, and every id of the list."""
    found: dict[int | str, ListedImage] = {}
    every_id: set[int | str] = set()
    for place, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        id_, file_name = fields.get("id"), fields.get("file_name")
        if file_name is None and isinstance(fields.get("coco_url"), str):
            file_name = name_of_url(fields["coco_url"])  # LVIS
        if not is_id(id_):
            about = f"images[{place}] ({shown(file_name)})"
            message = f"{about}: id {shown(id_)} is neither an integer nor text"
            health.add_bad(Finding("image_id", message), is_image=True)
            continue
        about = f"image {id_} ({file_name})"
        if not isinstance(file_name, str) or not file_name:
            kind, message = "image_file_name", f"image {id_}: file_name {shown(file_name)}"
            message += " is no name"
        elif id_ in found:
            first = found[id_].file_name
            kind, message = "duplicate_image_id", f"{about}: its id is that of {first!r} as well"
        elif not _has_usable_size(fields):
            size = f"{shown(fields.get('width'))} x {shown(fields.get('height'))}"
            kind, message = "image_size", f"{about}: size {size} (w x h) is not positive integers"
        else:
            size = None
            if fields.get("height") is None:
                message = f"{about}: no size in the JSON, taken from the file"
                health.add_odd(Finding("image_size_missing", message, id_))
            else:
                size = (int(fields["height"]), int(fields["width"]))
            found[id_] = ListedImage(id_, file_name, size)
            every_id.add(id_)
            continue
        every_id.add(id_)
        health.add_bad(Finding(kind, message, id_), is_image=True)
    return [found[i] for i in sorted(found, key=sort_key)], every_id


def _has_usable_size(fields: dict) -> bool:
    """Both sides are positive integers, or both are missing."""
    sides = (fields.get("height"), fields.get("width"))
    if sides == (None, None):
        return True
    return all(is_number(s) and is_finite(s) and s >= 1 and s == int(s) for s in sides)
