"""What is unusual in a set that was kept, each kind counted with examples."""

import numpy as np
from jaxtyping import Bool, Float

from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.health import Finding

CLIP_TOLERANCE = 1.0
"""px by which a box may stick out of its image before that counts as odd (rounding)."""
NEAR = 0.9
"""IoU from which two boxes of one class are nearly the same."""
AREA_TOLERANCE = 1.02
"""An area may be this many times that of its box (rounding) before it counts as odd."""


def count_oddities(dataset: DetectionDataset) -> None:
    """Notes what is unusual and kept: boxes, images, files, categories."""
    _count_box_oddities(dataset)
    _count_image_oddities(dataset)
    a, health = dataset.annotations, dataset.health
    used = np.isin(dataset.category_ids, a.category_id)
    for n in np.flatnonzero(~used).tolist():
        text = f"category {dataset.category_id(n)} ({dataset.class_names[n]}): no box has it"
        health.add_odd(Finding("category_without_boxes", text))
    if len(a.id) and (a.id == 0).any():
        health.add_odd(Finding("annotation_id_zero", "annotation id 0: replaced for pycocotools"))


def _count_box_oddities(dataset: DetectionDataset) -> None:
    a = dataset.annotations
    far = a.xywh[:, :2] + a.xywh[:, 2:] - dataset.sizes[a.record][:, ::-1]
    out = np.maximum(far, -a.xywh[:, :2]).max(axis=1, initial=0)
    for n in np.flatnonzero(out > CLIP_TOLERANCE).tolist():
        _note(dataset, "box_clipped", n, f"sticks {out[n]:.1f} px out, clipped")
    for n in np.flatnonzero(corner_boxes(dataset)).tolist()[:1]:
        text = f"bbox {a.xywh[n].tolist()}: most boxes look like x1, y1, x2, y2, not x, y, w, h"
        _note(dataset, "boxes_as_corners", n, text)
    for n in np.flatnonzero((a.xywh[:, :2] + a.xywh[:, 2:] <= 1).all(axis=1)).tolist():
        _note(dataset, "box_normalised", n, "lies within 0..1, as if relative to its image")
    is_double, is_near = _doubles(dataset)
    for n in np.flatnonzero(is_double).tolist():
        _note(dataset, "box_double", n, "appears twice with the same class")
    for n in np.flatnonzero(is_near & ~is_double).tolist():
        _note(dataset, "box_near_double", n, "nearly covers another of the same class")
    too_large = a.area > AREA_TOLERANCE * np.prod(a.xywh[:, 2:], axis=1) + 1
    for n in np.flatnonzero(too_large).tolist():
        _note(dataset, "area_larger_than_box", n, f"area {a.area[n]:g} px^2 is more than its box")


def corner_boxes(dataset: DetectionDataset) -> Bool[np.ndarray, " M"]:
    """Boxes that stick out, and lie inside when read as x1, y1, x2, y2.

    All false unless every box can be read so and a fifth of them stick out: true x, y, w, h boxes
    have a width below their x in most images.
    """
    a = dataset.annotations
    limits = dataset.sizes[a.record][:, ::-1] + CLIP_TOLERANCE
    first, second = a.xywh[:, :2], a.xywh[:, 2:]
    fits = np.all((second <= limits) & (second > first), axis=1)
    sticks_out = np.any(first + second > limits, axis=1)
    if not len(fits) or fits.mean() < 0.98 or sticks_out.mean() < 0.2:
        return np.zeros(len(fits), bool)
    return fits & sticks_out


def _doubles(
    dataset: DetectionDataset,
) -> tuple[Bool[np.ndarray, " M"], Bool[np.ndarray, " M"]]:
    """Boxes that are, and boxes that nearly cover, another of their image and class.

    Sorted by their left and upper side, doubles follow each other; of near ones the next two boxes
    are compared.
    """
    a = dataset.annotations
    order = np.lexsort((*a.xywh.T[::-1], a.category_id, a.record))
    record, category, xywh = a.record[order], a.category_id[order], a.xywh[order]
    double, near = (np.zeros(len(order), bool) for _ in range(2))
    for step in (1, 2):
        same = (record[:-step] == record[step:]) & (category[:-step] == category[step:])
        first = np.flatnonzero(same)
        iou = _iou(xywh[first], xywh[first + step])
        near[order[first[iou >= NEAR] + step]] = True
        if step == 1:
            equal = (xywh[first] == xywh[first + 1]).all(axis=1)
            double[order[first[equal] + 1]] = True
    return double, near


def _iou(one: Float[np.ndarray, "n 4"], two: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Of pairs of xywh boxes."""
    low = np.maximum(one[:, :2], two[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], two[:, :2] + two[:, 2:])
    inside = np.prod((high - low).clip(0), axis=1)
    return inside / (np.prod(one[:, 2:], axis=1) + np.prod(two[:, 2:], axis=1) - inside)


def _count_image_oddities(dataset: DetectionDataset) -> None:
    a, health = dataset.annotations, dataset.health
    num_boxes = np.bincount(a.record, minlength=dataset.num_records)
    num_crowds = np.bincount(a.record[a.is_crowd], minlength=dataset.num_records)
    for kind, mask in (
        ("image_without_boxes", num_boxes == 0),
        ("image_all_crowd", (num_boxes > 0) & (num_boxes == num_crowds)),
    ):
        for n in np.flatnonzero(mask).tolist():
            health.add_odd(Finding(kind, dataset.describe(n), dataset.image_id(n)))
    if dataset.digests is None:
        return
    first_of: dict[int, int] = {}
    for n, digest in enumerate(dataset.digests.tolist()):
        first = first_of.setdefault(digest, n)
        if first == n:
            continue
        kind = "file_content_twice"
        if dataset.file_name(first) == dataset.file_name(n):
            kind = "file_under_two_ids"
        text = f"{dataset.describe(n)} is the same file as {dataset.describe(first)}"
        health.add_odd(Finding(kind, text, dataset.image_id(n)))


def _note(dataset: DetectionDataset, kind: str, n: int, text: str) -> None:
    a = dataset.annotations
    record = int(a.record[n])
    message = f"annotation {a.id[n]} of {dataset.describe(record)}: {text}"
    dataset.health.add_odd(Finding(kind, message, dataset.image_id(record)))
