"""Stock detection sets of `tensorflow_datasets`: where image, boxes and labels are, by their type.

coco/2017, voc, kitti and wider_face name their fields differently; the types of the features tell.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from atss_jax.errors import UserError

COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""COCO's 80 category ids; the stock builder keeps only their order."""
BOX_DECIMALS = 2
"""Decimals of boxes in px, as COCO's and KITTI's have them; relative float32 boxes are rounded back
to them."""
_CROWDS = ("is_crowd", "is_difficult")
"""Fields of objects that are neither trained on nor counted as missed."""


class StockLayout(NamedTuple):
    """Names of the features."""

    image: str
    file_name: str | None
    """None: images are named by their number."""
    image_id: str | None
    """None: images are numbered from 1 in the records' order."""
    objects: str
    """The sequence of objects."""
    box: str
    label: str | None
    """None: there is one class, named as the objects are."""
    crowd: str | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def find_stock_layout(builder: Any) -> StockLayout:
    """The layout of a builder's features.

    Raises:
      UserError: not one image, or no sequence of objects with boxes.
    """
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    objects = [
        (key, field)
        for key, feature in features.items()
        if isinstance(getattr(feature, "feature", None), tfds.features.FeaturesDict)
        for field, inner in feature.feature.items()
        if isinstance(inner, tfds.features.BBoxFeature)
    ]
    if len(images) != 1 or len(objects) != 1:
        raise UserError(
            f"{builder.info.full_name}: records with fields {sorted(features)} are neither this "
            "package's nor a detection set's, which has one image and one sequence of objects with "
            "a bounding box. Prepare the data with scripts/prepare_coco.py."
        )
    key, box = objects[0]
    inside = features[key].feature
    label = _first(inside, tfds.features.ClassLabel, "label")
    names = (key.removesuffix("s"),) if label is None else tuple(inside[label].names)
    is_coco = len(names) == len(COCO_CATEGORY_IDS)
    return StockLayout(
        image=images[0],
        file_name=_first(features, tfds.features.Text, "file"),
        image_id="image/id" if "image/id" in features else None,
        objects=key,
        box=box,
        label=label,
        crowd=next((field for field in _CROWDS if field in inside), None),
        class_names=names,
        category_ids=COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(names) + 1)),
    )


def _first(features: Any, kind: type, word: str) -> str | None:
    """The feature of a type, preferably one with a word in its name; files only with it."""
    found = [k for k, f in features.items() if isinstance(f, kind)]
    named = [k for k in found if word in k]
    if word == "file":
        return next(iter(named), None)
    return next(iter(named + found), None)


def stock_objects(
    record: Mapping[str, Any], layout: StockLayout, size: tuple[int, int], first_id: int
) -> dict[str, np.ndarray]:
    """A record's annotations from relative yxyx boxes and dense labels.

    A label that is none becomes the category id -1, which no class has.

    Args:
      record: the decoded record.
      layout: its features.
      size: (h, w) of the image, px.
      first_id: id of its first annotation where the records have none.
    """
    objects = record[layout.objects]
    relative = np.asarray(objects[layout.box], np.float64).reshape(-1, 4)
    yxyx = np.round(relative * np.tile(size, 2), BOX_DECIMALS)
    corner, far = yxyx[:, 1::-1], yxyx[:, 3:1:-1]
    extent = np.round(far - corner, BOX_DECIMALS)
    count = len(relative)
    labels = np.zeros(count, np.int64)
    if layout.label is not None:
        labels = np.asarray(objects[layout.label], np.int64)
    ids = np.array(layout.category_ids, np.int64)
    known = (labels >= 0) & (labels < len(ids))
    crowd = np.zeros(count, bool) if layout.crowd is None else objects[layout.crowd]
    return {
        "id": np.asarray(objects.get("id", np.arange(first_id, first_id + count)), np.int64),
        "category_id": np.where(known, ids[labels.clip(0, len(ids) - 1)], -1),
        "xywh": np.concatenate([corner, extent], axis=1),
        "area": np.asarray(objects.get("area", extent.prod(axis=1)), np.float64),
        "is_crowd": np.asarray(crowd, bool),
    }
