"""The annotation list of a COCO-format file: good entries become columns, bad ones findings.

All entries are checked at once as arrays; those that fail are looked at one by one, for the kind by
which they are counted and the message.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from atss_jax.data.dataset import Annotations
from atss_jax.data.health import Finding, Health
from atss_jax.data.identifiers import is_id, shown, to_int64


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number, finite or not (true and false are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: int | float) -> bool:
    """Whether a number is finite as a float64: integers of hundreds of digits are not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


class Known(NamedTuple):
    """What annotations refer to."""

    record_of: dict[int | str, int]
    """Record index by image id, of the kept images."""
    names: list[str]
    """File name by record, for messages."""
    sizes: np.ndarray
    """(h, w) px by record."""
    every_image_id: set[int | str]
    """Of all images in the file, the dropped ones included."""
    label_of: dict[int | str, int]
    """Dense label by category id."""


class _Fields(NamedTuple):
    """Columns of the list; values of a wrong type are replaced, and their rows suspect."""

    image_id: list
    id: list
    label: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    """NaN where there is none."""
    is_crowd: np.ndarray
    suspect: np.ndarray
    """bool [M]: look at this row by itself."""


def read_annotations(
    entries: list, known: Known, category_ids: np.ndarray, health: Health
) -> Annotations:
    """The good annotations of the kept images, as columns grouped by record.

    Args:
      entries: the file's list.
      known: the images and categories.
      category_ids: int64 by dense label, for the column.
      health: counts what is found.
    """
    fields = _columns(entries, known)
    record = np.array([known.record_of.get(i, -1) for i in fields.image_id], np.int64)
    gone = np.zeros(len(record), bool)
    for n in np.flatnonzero(record < 0).tolist():
        gone[n] = fields.image_id[n] in known.every_image_id
    # rows of images that are not there have no size to be checked against
    sizes = known.sizes[record] if len(known.sizes) else np.ones((len(record), 2), np.int32)
    missing_area = np.isnan(fields.area)
    with np.errstate(all="ignore"):
        area = np.where(missing_area, fields.xywh[:, 2] * fields.xywh[:, 3], fields.area)
        good = (
            (record >= 0)
            & (fields.label >= 0)
            & np.isfinite(fields.xywh).all(axis=1)
            & (fields.xywh[:, 2:] > 0).all(axis=1)
            & _have_extent(fields.xywh, sizes)
            & np.isfinite(area)
            & (area >= 0)
        )
    repeated = _repeated(fields.id)
    suspect = fields.suspect | ~good
    if repeated:
        suspect |= np.array([id_ in repeated for id_ in fields.id], bool)
    seen: set[int | str] = set()
    keep = ~suspect & ~gone
    for n in np.flatnonzero(suspect & ~gone).tolist():
        problem = _annotation_problem(entries[n], known, seen)
        if problem is None:
            keep[n] = True
            seen.add(fields.id[n])
            continue
        image_id = fields.image_id[n] if record[n] >= 0 else None
        finding = Finding(problem[0], f"{_about(entries, n, known)}: {problem[1]}", image_id)
        health.add_bad(finding, is_image=False)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(record[rows], kind="stable")]
    ids = [fields.id[n] for n in rows.tolist()]
    for kind, text, where in (
        ("annotation_id_missing", "made one up", [i for i, id_ in enumerate(ids) if id_ is None]),
        ("area_missing", "took the box's", np.flatnonzero(missing_area[rows]).tolist()),
        (
            "ignore_not_read",
            "its field ignore means nothing in COCO's format: crowds have iscrowd = 1",
            [i for i, n in enumerate(rows.tolist()) if entries[n].get("ignore")],
        ),
    ):
        for n in rows[where].tolist():
            message = f"{_about(entries, n, known)}: {text}"
            health.add_odd(Finding(kind, message, fields.image_id[n]))
    return Annotations(
        record=record[rows].astype(np.int32),
        id=_inside_ids(ids, fields.id),
        category_id=np.asarray(category_ids, np.int64)[fields.label[rows]],
        xywh=fields.xywh[rows],
        area=area[rows],
        is_crowd=fields.is_crowd[rows],
    )


def _columns(entries: list, known: Known) -> _Fields:
    """One pass over the list for each field."""
    suspect = np.zeros(len(entries), bool)
    dicts = [e if type(e) is dict else {} for e in entries]
    suspect[[n for n, e in enumerate(dicts) if not e]] = True

    def column(name: str, allowed: set[type], instead: Any, default: Any = None) -> list:
        values = [e.get(name, default) for e in dicts]
        if not set(map(type, values)) <= allowed:
            for n, value in enumerate(values):
                if type(value) not in allowed:
                    suspect[n], values[n] = True, instead
        return values

    numbers = {int, float}
    image_id = column("image_id", {int, str}, None)
    id_ = column("id", {int, str, type(None)}, None)
    category = column("category_id", {int, str}, None)
    area = column("area", numbers | {type(None)}, None)
    crowd = column("iscrowd", {int, bool, float}, 0, default=0)
    boxes = column("bbox", {list}, [0.0] * 4)
    if set(map(len, boxes)) - {4} or not set(map(type, chain.from_iterable(boxes))) <= numbers:
        for n, box in enumerate(boxes):
            if len(box) != 4 or not all(type(v) in numbers for v in box):
                suspect[n], boxes[n] = True, [0.0] * 4
    if not set(crowd) <= {0, 1}:
        suspect[[n for n, v in enumerate(crowd) if v not in (0, 1)]] = True
    suspect[[n for n, v in enumerate(id_) if v == ""]] = True
    areas = _floats([math.nan if v is None else v for v in area])
    for n in np.flatnonzero(np.isnan(areas)).tolist():
        suspect[n] |= area[n] is not None
    return _Fields(
        image_id=image_id,
        id=id_,
        label=np.array([known.label_of.get(c, -1) for c in category], np.int64),
        xywh=_floats(list(chain.from_iterable(boxes))).reshape(-1, 4),
        area=areas,
        is_crowd=np.array([v == 1 for v in crowd], bool),
        suspect=suspect,
    )


def _floats(values: list) -> np.ndarray:
    """float64; integers beyond it become infinite."""
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return np.array([v if is_finite(v) or v != v else math.inf for v in values], np.float64)


def _have_extent(xywh: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes keep a float32 extent when clipped to images of (h, w) px."""
    start = np.maximum(xywh[:, :2], 0).astype(np.float32)
    end = np.minimum(xywh[:, :2] + xywh[:, 2:], sizes[:, ::-1]).astype(np.float32)
    return np.asarray((start < end).all(axis=1))


def _repeated(ids: Sequence[int | str | None]) -> set[int | str | None]:
    """Ids that appear more than once."""
    if len(set(ids)) == len(ids):
        return set()
    return {id_ for id_, count in Counter(ids).items() if count > 1 and id_ is not None}


def _inside_ids(ids: list, given: list) -> np.ndarray:
    """int64 ids: the file's where they fit, with new ones in gaps; 1, 2, ... otherwise."""
    if any(type(id_) is str for id_ in ids):
        return np.arange(1, len(ids) + 1, dtype=np.int64)
    next_id = 1 + max((id_ for id_ in given if type(id_) is int), default=0)
    made = iter(range(next_id, next_id + len(ids)))
    return to_int64([next(made) if id_ is None else id_ for id_ in ids]).inside


def _about(entries: list, n: int, known: Known) -> str:
    fields = entries[n] if isinstance(entries[n], dict) else {}
    id_, image_id = fields.get("id", f"number {n}"), fields.get("image_id")
    id_, image_id = (v if type(v) is str else shown(v) for v in (id_, image_id))
    about = f"annotation {id_} of image {image_id}"
    record = known.record_of.get(fields["image_id"]) if is_id(fields.get("image_id")) else None
    return about if record is None else f"{about} ({known.names[record]})"


def _annotation_problem(entry: Any, known: Known, seen: set[int | str]) -> tuple[str, str] | None:
    """(kind, text) of the first thing wrong with an annotation; None for a good one."""
    if not isinstance(entry, dict) or not entry:
        return "annotation_type", "it is no object with fields"
    id_, category_id = entry.get("id"), entry.get("category_id")
    area, crowd, image_id = entry.get("area"), entry.get("iscrowd", 0), entry.get("image_id")
    if id_ is not None and not is_id(id_):
        return "annotation_id", f"id {shown(id_)} is neither an integer nor text"
    if id_ in seen:
        return "duplicate_annotation_id", f"id {shown(id_)} appears twice"
    if not is_id(image_id) or image_id not in known.record_of:
        return "unknown_image", f"image_id {shown(image_id)} is not among the images"
    if not is_id(category_id) or category_id not in known.label_of:
        return "unknown_category", f"category_id {shown(category_id)} is not among the categories"
    height, width = known.sizes[known.record_of[image_id]].tolist()
    problem = _box_problem(entry.get("bbox"), (height, width), area is None)
    if problem is not None:
        return problem
    if area is not None and not (is_number(area) and is_finite(area) and area >= 0):
        return "area", f"area {shown(area)} is not a number >= 0"
    if crowd not in (0, 1):
        return "iscrowd", f"iscrowd {shown(crowd)} is neither 0 nor 1"
    return None


def _box_problem(box: Any, size: tuple[int, int], is_area_needed: bool) -> tuple[str, str] | None:
    """(kind, text) of what is wrong with a box of an image of (h, w) px."""
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
        return "box_type", f"bbox {shown(box)} is not four numbers (x, y, w, h)"
    if not all(is_finite(v) for v in box):
        return "box_not_finite", f"bbox {shown(box)} is not finite"
    if box[2] <= 0 or box[3] <= 0:
        return "box_empty", f"bbox {shown(box)} (x, y, w, h) has no area"
    values = np.array([box], np.float64)
    height, width = size
    with np.errstate(all="ignore"):
        if not _have_extent(values, np.array([size]))[0]:
            text = f"bbox {shown(box)} (x, y, w, h) lies outside the {width}x{height} image"
            return "box_outside", text
        if is_area_needed and not np.isfinite(values[0, 2] * values[0, 3]):
            return "box_not_finite", f"the area of bbox {shown(box)} is not finite"
    return None
