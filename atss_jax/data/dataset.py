"""One description of a detection set, whatever it was read from.

Columns in memory, images behind a source that reads bytes by record index. Records are sorted by
image id, so the same images give the same batches from every source. Pickles into worker processes.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from atss_jax.data.decoding import MAX_PIXELS
from atss_jax.data.health import Health

MIN_OBJECT_SIDE = 1.0
"""Official training filter: an image counts as empty when all its boxes have a side of at most
this, px (CONVENTIONS, section 8)."""


@runtime_checkable
class ImageSource(Protocol):
    """Reads encoded images by record index."""

    def read(self, index: int) -> bytes:
        """The encoded image."""
        ...

    def file_name(self, index: int) -> str:
        """Its name, for messages."""
        ...


class Annotations(NamedTuple):
    """All annotations, crowds included, as columns; grouped by record, in the source's order."""

    record: Int[np.ndarray, " M"]
    id: Int[np.ndarray, " M"]
    category_id: Int[np.ndarray, " M"]
    xywh: Float[np.ndarray, "M 4"]
    """float64, as in the source."""
    area: Float[np.ndarray, " M"]
    """px^2 of the mask (or of the box, where the source has no masks), as in the source."""
    is_crowd: Bool[np.ndarray, " M"]


@dataclasses.dataclass(frozen=True)
class DetectionDataset:
    """Images with boxes.

    Attributes:
      name: for messages.
      image_ids: int64, ascending: the source's ids, or numbers from 1 where those do not fit.
      sizes: (h, w) px as the network sees them, after the EXIF policy.
      orientations: EXIF orientation to undo when decoding; 1 where pixels are taken as stored.
      class_names: by dense label.
      category_ids: category id by dense label; likewise. Ascending as read, in another order where
        a network has another.
      annotations: everything that evaluation needs.
      source: the encoded images.
      health: what was found while reading.
      max_pixels: limit of an image's pixels when it is decoded.
      digests: uint64 of each file's beginning, end and length; None where files were not read.
      original_image_ids: the source's image ids where `image_ids` are not; None otherwise.
      original_category_ids: likewise.
      dropped_classes: names that were listed and that no box has, see `with_classes`.
    """

    name: str
    image_ids: Int[np.ndarray, " N"]
    sizes: Int[np.ndarray, "N 2"]
    orientations: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotations: Annotations
    source: ImageSource
    health: Health = dataclasses.field(default_factory=Health)
    max_pixels: int = MAX_PIXELS
    digests: UInt[np.ndarray, " N"] | None = None
    original_image_ids: tuple[int | str, ...] | None = None
    original_category_ids: tuple[int | str, ...] | None = None
    dropped_classes: tuple[str, ...] = ()

    def __post_init__(self):
        """Derives the training boxes."""
        a = self.annotations
        boxes = training_boxes(a.xywh, self.sizes[a.record])
        keep = ~a.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        by_id = np.argsort(self.category_ids)
        labels = by_id[np.searchsorted(np.sort(self.category_ids), a.category_id)].astype(np.int32)
        offsets = np.searchsorted(a.record[keep], np.arange(len(self.image_ids) + 1))
        is_object = (a.xywh[keep, 2:] > MIN_OBJECT_SIDE).all(axis=1)
        has_objects = np.zeros(len(self.image_ids), bool)
        has_objects[a.record[keep][is_object]] = True
        derived = {
            "_boxes": boxes[keep],
            "_labels": labels[keep],
            "annotation_labels": labels,
            "whole_bytes": np.zeros(len(self.image_ids), np.int64),
            "_offsets": offsets,
            "has_objects": has_objects,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    _boxes: np.ndarray = dataclasses.field(init=False, repr=False)
    _labels: np.ndarray = dataclasses.field(init=False, repr=False)
    _offsets: np.ndarray = dataclasses.field(init=False, repr=False)
    annotation_labels: Int[np.ndarray, " M"] = dataclasses.field(init=False, repr=False)
    """Dense label of every row of `annotations`."""
    whole_bytes: Int[np.ndarray, " N"] = dataclasses.field(init=False, repr=False)
    """Length of each file that was decoded and found not to be cut off; 0 for the others."""
    has_objects: Bool[np.ndarray, " N"] = dataclasses.field(init=False, repr=False)
    """Whether an image has a box to train on that is wider and higher than a pixel."""

    @property
    def num_records(self) -> int:
        """Images."""
        return len(self.image_ids)

    @property
    def num_boxes(self) -> Int[np.ndarray, " N"]:
        """Training boxes of each record."""
        return np.diff(self._offsets)

    def boxes(self, index: SupportsIndex) -> Float[np.ndarray, "n 4"]:
        """Training boxes of a record: xyxy px in the original, clipped to it; no crowds."""
        return self._boxes[self._span(index)]

    def labels(self, index: SupportsIndex) -> Int[np.ndarray, " n"]:
        """Dense labels of `boxes`."""
        return self._labels[self._span(index)]

    def _span(self, index: SupportsIndex) -> slice:
        first = operator.index(index)
        return slice(self._offsets[first], self._offsets[first + 1])

    def image_bytes(self, index: SupportsIndex) -> bytes:
        """The encoded image of a record."""
        return self.source.read(operator.index(index))

    def file_name(self, index: SupportsIndex) -> str:
        """Its file name, for messages."""
        return self.source.file_name(operator.index(index))

    def describe(self, index: SupportsIndex) -> str:
        """Id and file name of a record, as messages give them."""
        return f"image {self.image_id(index)} ({self.file_name(index)})"

    def image_id(self, index: SupportsIndex) -> int | str:
        """The source's id of a record."""
        first = operator.index(index)
        originals = self.original_image_ids
        return int(self.image_ids[first]) if originals is None else originals[first]

    def category_id(self, label: SupportsIndex) -> int | str:
        """The source's id of a class."""
        first = operator.index(label)
        originals = self.original_category_ids
        return self.category_ids[first] if originals is None else originals[first]

    def class_counts(self) -> Int[np.ndarray, " C"]:
        """Annotations by dense label, crowds among them."""
        return np.bincount(self.annotation_labels, minlength=len(self.class_names))

    def with_classes(self, names: Sequence[str]) -> "DetectionDataset":
        """The set with some of its classes, in this order; category ids stay.

        Args:
          names: of classes, by the new dense label; those left out have no annotation.

        Raises:
          ValueError: a class with annotations is left out.
        """
        left = [name for name in self.class_names if name not in names]
        used = {self.class_names[n] for n in np.flatnonzero(self.class_counts())}
        if used.intersection(left):
            raise ValueError(f"{self.name}: annotations have the classes {used.intersection(left)}")
        order = [self.class_names.index(name) for name in names]
        originals = self.original_category_ids
        return dataclasses.replace(
            self,
            class_names=tuple(names),
            category_ids=tuple(self.category_ids[i] for i in order),
            original_category_ids=None if originals is None else tuple(originals[i] for i in order),
            dropped_classes=(*self.dropped_classes, *left),
        )

    def original_results(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """COCO results (of `image_ids` and `category_ids`) with the source's own ids."""
        return self._with_ids(results, to_original=True)

    def inside_results(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What `original_results` gave, with `image_ids` and `category_ids` again."""
        return self._with_ids(results, to_original=False)

    def _with_ids(self, results: Sequence[Mapping[str, Any]], to_original: bool) -> list[dict]:
        if self.original_image_ids is None and self.original_category_ids is None:
            return [dict(result) for result in results]
        image: dict[int | str, int | str] = {}
        category: dict[int | str, int | str] = {}
        for n, inside in enumerate(self.image_ids):
            original = self.image_id(n)
            source, target = (int(inside), original) if to_original else (original, int(inside))
            image[source] = target
        for n, inside in enumerate(self.category_ids):
            original = self.category_id(n)
            source, target = (inside, original) if to_original else (original, inside)
            category[source] = target
        return [
            {**r, "image_id": image[r["image_id"]], "category_id": category[r["category_id"]]}
            for r in results
        ]

    def coco_ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's format, for pycocotools.

        pycocotools takes a match with annotation id 0 for no match, so an id of 0 is replaced by
        the first free one. All other ids are the source's, or numbers from 1 where those do not fit
        into int64 (`image_ids`, `category_ids`).
        """
        a = self.annotations
        ids = np.where(a.id == 0, a.id.max(initial=0) + 1, a.id)
        columns = (ids, self.image_ids[a.record], a.category_id, a.xywh, a.area, a.is_crowd)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [
                {"id": int(i), "file_name": self.file_name(n), "height": int(h), "width": int(w)}
                for n, (i, (h, w)) in enumerate(zip(self.image_ids, self.sizes, strict=True))
            ],
            "categories": [
                {"id": i, "name": n}
                for i, n in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": [
                {
                    "id": id_,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": xywh,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for id_, image_id, category_id, xywh, area, is_crowd in rows
            ],
        }


def training_boxes(
    xywh: Float[np.ndarray, "M 4"], sizes: Int[np.ndarray, "M 2"]
) -> Float[np.ndarray, "M 4"]:
    """xyxy px (float32) clipped to images of (h, w) px; empty ones end up with x2 <= x1."""
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    limits = np.tile(sizes[:, ::-1], 2)
    return np.clip(corners, 0, limits).astype(np.float32)
