"""Where a folder has annotation files and images in COCO format: COCO's layout, Roboflow's, ..."""

import itertools
import json
import mmap
import os
import re
from pathlib import Path

from atss_jax.data.splits import Layout, SplitSource, files_of, folders, split_word
from atss_jax.errors import UserError

_NO_BOXES = ("captions", "keypoints", "panoptic", "stuff", "image_info")
"""COCO's annotation files of other tasks have one of these in their name."""
_FILE_NAME = re.compile(rb'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)*")')
_NAMES_LOOKED_AT = 20


def find(root: str, val_fraction: float) -> Layout | None:
    """COCO JSON files in a folder, in its annotations/ and in folders named as splits.

    Args:
      root: the folder, or one JSON file.
      val_fraction: share of the images that validate where there is one file for all.

    Raises:
      UserError: several files or folders, of which none is clearly the one.
    """
    if os.path.isfile(root):
        folder = os.path.dirname(root) or "."
        return _split_one(root, folder, val_fraction) if _is_detection_json(root) else None
    places = [root]
    for entry in folders(root):
        if entry.name.lower() in ("annotations", "labels") or split_word(entry.name):
            places.append(entry.path)
    paths = [str(Path(place, name)) for place in places for name in files_of(place, ".json")]
    by_split: dict[str, list[str]] = {"train": [], "val": [], "test": [], "": []}
    for path in sorted(paths):
        if _is_detection_json(path):
            by_split[split_word(os.path.relpath(path, root))].append(path)
    train, val = (_prefer_instances(by_split[split]) for split in ("train", "val"))
    val = val or _prefer_instances(by_split["test"])
    for name, several in (("train", train), ("val", val)):
        if len(several) > 1:
            raise UserError(
                f"several annotation files for {name}: {', '.join(several)}. Give "
                f"data.{name}_annotations and data.{name}_images."
            )
    if not train:
        rest = [path for some in by_split.values() for path in some]
        if len(rest) > 1:
            raise UserError(
                f"which of these annotation files is for training? {', '.join(rest)}. Name them "
                "train.json and val.json, or give data.train_annotations and the other paths."
            )
        return _split_one(rest[0], root, val_fraction) if rest else None
    if not val:
        return _split_one(train[0], root, val_fraction)
    kind = "Roboflow's COCO" if train[0].endswith("_annotations.coco.json") else "COCO"
    train_images = _find_images(root, train[0], "train")
    val_images = _find_images(root, val[0], "val")
    return Layout(
        kind, SplitSource("coco", train[0], train_images), SplitSource("coco", val[0], val_images)
    )


def _split_one(path: str, root: str, val_fraction: float) -> Layout:
    images = _find_images(root, path, "train")
    return Layout(
        "one COCO JSON file",
        SplitSource("coco", path, images, share=(val_fraction, 1.0)),
        SplitSource("coco", path, images, share=(0.0, val_fraction)),
    )


_COCO_NAME = re.compile(r"instances_(train|val|test)(-dev)?(\d{4})?\.json", re.IGNORECASE)
"""Names of COCO's own annotation files, and of those that follow them."""


def _prefer_instances(paths: list[str]) -> list[str]:
    """Of several files for one split, the one named as COCO's; else the one that begins so."""
    names = {path: os.path.basename(path) for path in paths}
    for best in (
        [path for path, name in names.items() if _COCO_NAME.fullmatch(name)],
        [path for path, name in names.items() if name.startswith("instances_")],
    ):
        if len(best) == 1:
            return best
    return paths


def _is_detection_json(path: str) -> bool:
    """Whether a file is a COCO detection set, by its name and the keys in it."""
    name = os.path.basename(path).lower()
    if any(word in name for word in _NO_BOXES) or not os.path.getsize(path):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return all(data.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))


def _find_images(root: str, path: str, split: str) -> str:
    """The folder that the file names of a JSON file start from.

    The folder that holds most of the first ones; among equals the one named as the split, then
    the JSON file's own.

    Raises:
      UserError: several equally good ones.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        matches = itertools.islice(_FILE_NAME.finditer(data), _NAMES_LOOKED_AT)
        names = [json.loads(m[1].decode("utf-8", "replace")) for m in matches]
    own = os.path.dirname(path) or "."
    places = list(dict.fromkeys([own, root]))
    for first in folders(root):
        places += [first.path, *(second.path for second in folders(first.path))]

    def rank(folder: str) -> tuple[int, bool, bool]:
        hits = sum(os.path.exists(os.path.join(folder, name)) for name in names)
        return hits, split_word(os.path.relpath(folder, root)) == split, folder == own

    places = list(dict.fromkeys(map(os.path.normpath, places)))
    ranks = {folder: rank(folder) for folder in places}
    best = max(ranks.values())
    chosen = [folder for folder in places if ranks[folder] == best]
    if best[0] and len(chosen) > 1:
        raise UserError(
            f"the images of {path} are in each of {', '.join(chosen)}. Give data.{split}_images."
        )
    return chosen[0]
