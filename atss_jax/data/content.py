"""What an annotation set says, whatever files it was in, checked into a `DetectionDataset`.

Readers of COCO files, YOLO labels and Pascal VOC all end here, so all get the same checks. Bad
records stop the run or are dropped (`data.on_error`); nothing is repaired silently.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from atss_jax.data.annotation_checks import (
    Known,
    is_number,
    read_annotations,
)
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.file_names import name_of_url
from atss_jax.data.health import Finding, Health
from atss_jax.data.identifiers import is_id, shown, sort_key, to_int64
from atss_jax.data.image_files import FilePolicy, FolderSource, ListedImage, check_files
from atss_jax.data.oddities import count_oddities
from atss_jax.errors import MissingFileError, UserError

FULL_DECODE_LIMIT = 500
"""Sets of at most this many images are decoded whole before training, as are all sets under
`on_error="skip"`; of larger ones headers are read, and an image that does not decode stops the run
when it is met."""
_MAX_SIDE = 2**31 - 1
"""px: sizes are kept as int32."""
ALL = (0.0, 1.0)
"""The share of every image."""
NONE = (1.0, 1.0)
"""The share of no image: what `data.val_fraction=1` leaves for training."""


class Content(NamedTuple):
    """An annotation set in the terms of a COCO file; entries are unchecked."""

    path: str
    """What it was read from, for messages."""
    folder: str
    """That file names start from."""
    images: list
    annotations: list
    categories: list
    is_relative: bool = False
    """Whether boxes are shares of their image's sides, and images have no size."""
    bad_annotations: Sequence[Finding] = ()
    """Found by the reader, and not among `annotations`."""
    bad_images: Sequence[Finding] = ()
    """Likewise."""
    odd: Sequence[Finding] = ()
    """Likewise, of what was kept."""


def share_of(file_name: str) -> float:
    """A number in [0, 1) that depends on the file's name alone, to split a set by.

    Copies that Roboflow made of one picture ("a_jpg.rf.<hash>.jpg") get the same number.

    >>> round(share_of("a.jpg"), 3), share_of("a.rf.1.jpg") == share_of("a.rf.2.jpg")
    (0.315, True)
    """
    digest = hashlib.sha256(file_name.split(".rf.")[0].encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def take_share(content: Content, share: tuple[float, float]) -> Content:
    """The images whose `share_of` lies in [low, high), with their annotations.

    Neither the share nor the rest is empty: where need be, the image nearest to the border between
    them goes over.

    Args:
      content: the whole set.
      share: (low, high).

    Raises:
      UserError: there is one image.
    """
    if share == ALL:
        return content
    shares = [_share_of_entry(entry) for entry in content.images]
    named = {value for value in shares if value is not None}
    if len(named) == 1 and not content.bad_images:
        raise UserError(
            f"{content.path}: one image cannot be split into train and val: data.val_fraction "
            "needs at least two images (Roboflow's copies of one picture count as one). Add some, "
            "or give images for validation by themselves."
        )
    chosen = _chosen(named, share)
    kept, left = [], set()
    for entry, value in zip(content.images, shares, strict=True):
        if value is None or value in chosen:
            kept.append(entry)
        elif is_id(entry.get("id")):
            left.add(entry["id"])

    def stays(entry: Any) -> bool:
        id_ = entry.get("image_id") if isinstance(entry, dict) else None
        return not is_id(id_) or id_ not in left

    return content._replace(
        images=kept, annotations=[entry for entry in content.annotations if stays(entry)]
    )


def _share_of_entry(entry: Any) -> float | None:
    """`share_of` an image entry; None where it has no file name."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    return share_of(name) if isinstance(name, str) else None


def _chosen(values: set[float], share: tuple[float, float]) -> set[float]:
    """Those of some numbers that lie in [low, high); of several at least one, and not all.

    >>> _chosen({0.3, 0.5, 0.9}, (0.0, 0.2)), _chosen({0.3, 0.5, 0.9}, (0.2, 1.0)) == {0.5, 0.9}
    ({0.3}, True)
    """
    low, high = share
    chosen = {value for value in values if low <= value < high}
    if len(values) > 1 and (not chosen or chosen == values):
        border = high if low == 0 else low
        chosen ^= {min(values, key=lambda value: abs(value - border))}
    return chosen


def make_dataset(content: Content, *, name: str, config: DataConfig) -> DetectionDataset:
    """Checks an annotation set and its files.

    Args:
      content: the set.
      name: for messages.
      config: what is done with bad records, EXIF orientations, large images and odd paths.

    Returns:
      The set, sorted by image id; images without boxes included.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: bad records, or nothing left.
    """
    path = content.path
    category_ids, names = read_categories(content.categories, path)
    if not epath.Path(content.folder).is_dir():
        raise MissingFileError(f"image folder {content.folder!r} does not exist. Check the path.")
    num_images = len(content.images) + len(content.bad_images)
    if not num_images:
        raise UserError(f"{path}: no image is listed. Check that it is the right one.")
    health = Health(
        num_images=num_images,
        num_annotations=len(content.annotations) + len(content.bad_annotations),
    )
    for finding in content.bad_images:
        health.add_bad(finding, is_image=True)
    for finding in content.bad_annotations:
        health.add_bad(finding, is_image=False)
    for finding in content.odd:
        health.add_odd(finding)
    listed, every_image_id = _read_images(content, health)
    decode_all = config.on_error == "skip" or len(listed) <= FULL_DECODE_LIMIT
    policy = FilePolicy(config.exif, decode_all, config.max_pixels, config.allow_outside)
    kept, sizes, orientations, digests = check_files(listed, content.folder, policy, health)
    known = Known(
        record_of={image.id: n for n, image in enumerate(kept)},
        names=[image.file_name for image in kept],
        sizes=sizes,
        every_image_id=every_image_id,
        label_of={id_: label for label, id_ in enumerate(category_ids)},
    )
    inside_categories = to_int64(category_ids)
    entries = content.annotations
    if content.is_relative:
        entries = list(_in_pixels(entries, known, path))
    columns = read_annotations(entries, known, inside_categories.inside, health)
    health.settle(path, config.on_error, config.max_bad_fraction)
    if not kept:
        raise UserError(
            f"{path}: no image is left ({health.summary()}).\n  {health.report()}\nFix them; "
            "without an image there is nothing to learn from."
        )
    _check_units(columns.xywh, path)
    image_ids = to_int64([image.id for image in kept])
    dataset = DetectionDataset(
        name=name,
        image_ids=image_ids.inside,
        sizes=sizes,
        orientations=orientations,
        class_names=names,
        category_ids=tuple(inside_categories.inside.tolist()),
        annotations=columns,
        source=FolderSource(content.folder, [image.file_name for image in kept]),
        health=health,
        max_pixels=config.max_pixels,
        digests=digests,
        original_image_ids=image_ids.originals,
        original_category_ids=inside_categories.originals,
    )
    count_oddities(dataset)
    if health.bad:
        logging.warning("%s: %s", path, health.summary())
    return dataset


def read_categories(entries: list, path: str) -> tuple[tuple[int | str, ...], tuple[str, ...]]:
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


def _in_pixels(entries: list, known: Known, path: str) -> Iterator[dict]:
    """Entries with boxes in px, from shares of the image's sides.

    Raises:
      UserError: most of the boxes are no shares.
    """
    values = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    if len(values) and np.median(np.abs(values).max(axis=1)) > 2:
        raise UserError(
            f"{path}: most boxes reach beyond 2, as if in px. YOLO labels are shares of the "
            "image's sides in 0..1: divide x and width by its width, y and height by its height."
        )
    for entry in entries:
        record = known.record_of.get(entry["image_id"])
        height, width = (1, 1) if record is None else known.sizes[record].tolist()
        x, y, w, h = entry["bbox"]
        yield {**entry, "bbox": [x * width, y * height, w * width, h * height]}


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


def _read_images(content: Content, health: Health) -> tuple[list[ListedImage], set[int | str]]:
    """The well-formed image entries ascending by id, and every id of the list."""
    found: dict[int | str, ListedImage] = {}
    every_id: set[int | str] = set()
    for place, entry in enumerate(content.images):
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
            if fields.get("height") is not None:
                size = (int(fields["height"]), int(fields["width"]))
            elif not content.is_relative:
                message = f"{about}: no size is given, taken from the file"
                health.add_odd(Finding("image_size_missing", message, id_))
            found[id_] = ListedImage(id_, file_name, size)
            every_id.add(id_)
            continue
        every_id.add(id_)
        health.add_bad(Finding(kind, message, id_), is_image=True)
    return [found[i] for i in sorted(found, key=sort_key)], every_id


def _has_usable_size(fields: dict) -> bool:
    """Both sides are positive integers, or both are missing."""
    height, width = fields.get("height"), fields.get("width")
    if height is None and width is None:
        return True
    if type(height) is int and type(width) is int:
        return 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE
    return all(is_number(s) and 1 <= s <= _MAX_SIDE and s == int(s) for s in (height, width))
