"""The annotation list of a COCO-format file, entry by entry: good ones become columns.

Every way in which an entry can be bad has a kind, by which it is counted.
"""

import math
from typing import Any, TypeGuard

import numpy as np

from atss_jax.data.dataset import Annotations, DetectionDataset, Finding, Health

CLIP_TOLERANCE = 1.0
"""px by which a box may stick out of its image before that counts as odd (rounding)."""


def is_int(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_annotations(
    entries: list,
    record_of: dict[int, int],
    *,
    names: list[str],
    sizes: np.ndarray,
    every_image_id: set[int],
    category_ids: set[int],
    health: Health,
) -> Annotations:
    """The good annotations of the kept images, as columns grouped by record.

    Args:
      entries: the file's list.
      record_of: record index by image id, of the kept images.
      names: file name by record, for messages.
      sizes: (h, w) px by record.
      every_image_id: of all images in the file, the dropped ones included.
      category_ids: the known ones.
      health: counts what is found.
    """
    seen: set[int] = set()
    rows: list[tuple] = []
    given = [e.get("id") for e in entries if isinstance(e, dict)]
    next_id = 1 + max(filter(is_int, given), default=0)
    limits = [(height, width) for height, width in sizes.tolist()]
    for place, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        image_id = fields.get("image_id")
        record = record_of.get(image_id) if is_int(image_id) else None
        if record is None and is_int(image_id) and image_id in every_image_id:
            continue  # its image is bad and counted as such
        about = f"annotation {fields.get('id', f'number {place}')} of image {image_id}"
        if record is not None:
            about += f" ({names[record]})"
        size = None if record is None else limits[record]
        problem = _annotation_problem(fields, size, category_ids, seen)
        if problem is not None:
            known_id = image_id if record is not None else None
            finding = Finding(problem[0], f"{about}: {problem[1]}", known_id)
            health.add_bad(finding, is_image=False)
            continue
        id_, area, box = fields.get("id"), fields.get("area"), fields["bbox"]
        if id_ is None:
            id_, next_id = next_id, next_id + 1
            health.add_odd(Finding("annotation_id_missing", f"{about}: made one up", image_id))
        if area is None:
            area = box[2] * box[3]
            health.add_odd(Finding("area_missing", f"{about}: took the box's", image_id))
        seen.add(id_)
        is_crowd = bool(fields.get("iscrowd", 0))
        rows.append((record, id_, fields["category_id"], box, area, is_crowd))
    rows.sort(key=lambda row: row[0])
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    return Annotations(
        record=np.array(columns[0], np.int32),
        id=np.array(columns[1], np.int64),
        category_id=np.array(columns[2], np.int64),
        xywh=np.array(columns[3], np.float64).reshape(-1, 4),
        area=np.array(columns[4], np.float64),
        is_crowd=np.array(columns[5], bool),
    )


def _annotation_problem(
    fields: dict,
    size: tuple[int, int] | None,
    category_ids: set[int],
    seen: set[int],
) -> tuple[str, str] | None:
    """(kind, text) of the first thing wrong with an annotation; None for a good one."""
    id_, category_id = fields.get("id"), fields.get("category_id")
    area, crowd = fields.get("area"), fields.get("iscrowd", 0)
    if not fields:
        return "annotation_type", "it is no object with fields"
    if id_ is not None and not is_int(id_):
        return "annotation_id", f"id {id_!r} is no integer"
    if id_ in seen:
        return "duplicate_annotation_id", f"id {id_} stands twice"
    if size is None:
        return "unknown_image", f"image_id {fields.get('image_id')!r} is not among the images"
    if not is_int(category_id) or category_id not in category_ids:
        return "unknown_category", f"category_id {category_id!r} is not among the categories"
    problem = _box_problem(fields.get("bbox"), size)
    if problem is not None:
        return problem
    if area is not None and not (is_number(area) and math.isfinite(area) and area >= 0):
        return "area", f"area {area!r} is not a number >= 0"
    if crowd not in (0, 1):
        return "iscrowd", f"iscrowd {crowd!r} is neither 0 nor 1"
    return None


def _box_problem(box: Any, size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, text) of what is wrong with a box of an image of (h, w) px."""
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) for v in box):
        return "box_type", f"bbox {box!r} is not four numbers (x, y, w, h)"
    if not all(math.isfinite(v) for v in box):
        return "box_not_finite", f"bbox {box} is not finite"
    if box[2] <= 0 or box[3] <= 0:
        return "box_empty", f"bbox {box} (x, y, w, h) has no area"
    height, width = size
    if not (_has_extent(box[0], box[2], width) and _has_extent(box[1], box[3], height)):
        return "box_outside", f"bbox {box} (x, y, w, h) lies outside the {width}x{height} image"
    return None


def _has_extent(start: int | float, length: int | float, limit: int) -> bool:
    """Whether [start, start + length] keeps a float32 extent when clipped to [0, limit]."""
    return bool(np.float32(max(start, 0)) < np.float32(min(start + length, limit)))


def count_oddities(dataset: DetectionDataset) -> None:
    """Notes what is unusual and kept: boxes that stick out or stand twice, empty images."""
    a, health = dataset.annotations, dataset.health
    far = a.xywh[:, :2] + a.xywh[:, 2:] - dataset.sizes[a.record][:, ::-1]
    out = np.maximum(far, -a.xywh[:, :2]).max(axis=1, initial=0)
    for n in np.flatnonzero(out > CLIP_TOLERANCE).tolist():
        _note(dataset, "box_clipped", n, f"sticks {out[n]:.1f} px out, clipped")
    rows = np.column_stack([a.record, a.category_id, a.xywh])
    _, first = np.unique(rows, axis=0, return_index=True)
    for n in np.setdiff1d(np.arange(len(rows)), first).tolist():
        _note(dataset, "box_double", n, "stands twice with the same class")
    num_boxes = np.bincount(a.record, minlength=dataset.num_records)
    num_crowds = np.bincount(a.record[a.is_crowd], minlength=dataset.num_records)
    for kind, mask in (
        ("image_without_boxes", num_boxes == 0),
        ("image_all_crowd", (num_boxes > 0) & (num_boxes == num_crowds)),
    ):
        for n in np.flatnonzero(mask).tolist():
            id_ = int(dataset.image_ids[n])
            health.add_odd(Finding(kind, f"image {id_} ({dataset.file_name(n)})", id_))
    if len(a.id) and (a.id == 0).any():
        health.add_odd(Finding("annotation_id_zero", "annotation id 0: replaced for pycocotools"))


def _note(dataset: DetectionDataset, kind: str, n: int, text: str) -> None:
    a = dataset.annotations
    image_id = int(dataset.image_ids[a.record[n]])
    message = (
        f"annotation {a.id[n]} of image {image_id} ({dataset.file_name(int(a.record[n]))}): {text}"
    )
    dataset.health.add_odd(Finding(kind, message, image_id))
