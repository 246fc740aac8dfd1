"""What a folder of data holds: COCO, Roboflow, YOLO or Pascal VOC, by its files' names and places.

`find_layout` decides and says what it found; it reads no annotation but the first file names.
"""

import itertools
import json
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from atss_jax.data import yolo
from atss_jax.data.content import ALL
from atss_jax.errors import MissingFileError, UserError

LOOKED_FOR = (
    "COCO (one JSON file each for train and val, in the folder, in annotations/, or in train/ and "
    "valid/ as Roboflow writes it), one COCO JSON file (split by data.val_fraction), YOLO "
    "(data.yaml with names, train and val), Pascal VOC (Annotations/*.xml and JPEGImages)"
)
"""What `find_layout` knows, in words."""

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_NO_BOXES = ("captions", "keypoints", "panoptic", "stuff", "image_info")
"""COCO's annotation files of other tasks have one of these in their name."""
_FILE_NAME = re.compile(rb'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.)*")')
_NAMES_LOOKED_AT = 20


class SplitSource(NamedTuple):
    """Where one split of a set is."""

    kind: Literal["coco", "yolo", "voc"]
    annotations: str
    """JSON file, data.yaml, or folder of XML files."""
    images: str = ""
    """Folder that file names start from; YOLO: the folders, for messages."""
    names: str = ""
    """YOLO: the split's name in data.yaml. VOC: the list of names; "" for all."""
    share: tuple[float, float] = ALL
    """Only the images whose `share_of` lies in [low, high)."""

    def __str__(self) -> str:
        """On one line."""
        part = "" if self.share == ALL else f", {self.share[1] - self.share[0]:.0%} by file name"
        return f"{self.names or self.annotations} with images in {self.images}{part}"


class Layout(NamedTuple):
    """What was found."""

    kind: str
    """In words: "COCO", "YOLO", ..."""
    train: SplitSource
    val: SplitSource

    def __str__(self) -> str:
        """Three lines."""
        return f"{self.kind}\n  train: {self.train}\n  val: {self.val}"


def find_layout(folder: str | os.PathLike, val_fraction: float = 0.2) -> Layout:
    """Finds training and validation set in a folder, or by a data.yaml or one JSON file.

    Args:
      folder: the path; where it holds nothing but another folder, that one is looked at.
      val_fraction: share of the images that validate where there is one list for all, chosen by a
        hash of the file name. So an image stays in its part when others are added.

    Raises:
      FileNotFoundError: no such folder.
      UserError: nothing known in it, or several things; the message lists what was looked for.
    """
    root = os.fspath(folder).rstrip("/") or "/"
    if os.path.isfile(root):
        return _layout_of_file(root, val_fraction)
    if not os.path.isdir(root):
        raise MissingFileError(f"data.root={root!r}: no such folder (a local one is needed).")
    found, problems = _find(root, val_fraction)
    below = [p.path for p in _folders(root)]
    if not found and not problems:
        for path in below:
            more, troubles = _find(path, val_fraction)
            found, problems = found + more, problems + troubles
    if len(found) == 1:
        return found[0]
    if found:
        several = "\n".join(f"- {layout}" for layout in found)
        raise UserError(
            f"data.root={root!r} holds several sets:\n{several}\nGive the folder or the file of "
            "one, or the paths (data.train_annotations, data.train_images, data.val_annotations, "
            "data.val_images)."
        )
    if problems:
        raise UserError(f"data.root={root!r}: " + "\n".join(problems))
    there = sorted(os.listdir(root))[:8]
    raise UserError(
        f"data.root={root!r}: no data set found there. Looked for {LOOKED_FOR}. It holds "
        f"{', '.join(there) if there else 'nothing'}."
    )


def _find(root: str, val_fraction: float) -> tuple[list[Layout], list[str]]:
    """The layouts in a folder, and what is wrong with those that are nearly there."""
    finders: tuple[Callable[[str, float], Layout | None], ...] = (_find_coco, _find_yolo, _find_voc)
    found, problems = [], []
    for finder in finders:
        try:
            layout = finder(root, val_fraction)
        except UserError as error:
            problems.append(str(error))
        else:
            found += [layout] if layout else []
    return found, problems


def _layout_of_file(path: str, val_fraction: float) -> Layout:
    if path.lower().endswith((".yaml", ".yml")):
        return _yolo_layout(path, val_fraction)
    if not _is_detection_json(path):
        raise UserError(
            f"data.root={path!r}: neither a folder, nor a data.yaml, nor a COCO JSON file with "
            "images and annotations."
        )
    return _split_one(path, os.path.dirname(path) or ".", val_fraction)


def _folders(root: str) -> list[os.DirEntry]:
    with os.scandir(root) as entries:
        return sorted(
            (e for e in entries if e.is_dir() and not e.name.startswith((".", "__"))),
            key=lambda e: e.name,
        )


# COCO


def _find_coco(root: str, val_fraction: float) -> Layout | None:
    """COCO JSON files in the folder itself, in annotations/ and in folders named as splits."""
    paths = [*Path(root).glob("*.json")]
    for entry in _folders(root):
        if entry.name.lower() in ("annotations", "labels") or _split_word(entry.name):
            paths += Path(entry.path).glob("*.json")
    by_split: dict[str, list[str]] = {"train": [], "val": [], "test": [], "": []}
    for path in sorted(map(str, paths)):
        if _is_detection_json(path):
            by_split[_split_word(os.path.relpath(path, root))].append(path)
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


def _split_word(path: str) -> str:
    """The split that a path names: "train", "val", "test" or ""."""
    words = re.split(r"[^a-z]+", path.lower())
    for split, names in _SPLIT_WORDS.items():
        if any(word in names for word in words):
            return split
    return ""


def _prefer_instances(paths: list[str]) -> list[str]:
    best = [path for path in paths if os.path.basename(path).startswith("instances_")]
    return best if len(best) == 1 else paths


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
    folders = list(dict.fromkeys([own, root]))
    for first in _folders(root):
        folders += [first.path, *(second.path for second in _folders(first.path))]

    def rank(folder: str) -> tuple[int, bool, bool]:
        hits = sum(os.path.exists(os.path.join(folder, name)) for name in names)
        return hits, _split_word(os.path.relpath(folder, root)) == split, folder == own

    folders = list(dict.fromkeys(map(os.path.normpath, folders)))
    ranks = {folder: rank(folder) for folder in folders}
    best = max(ranks.values())
    chosen = [folder for folder in folders if ranks[folder] == best]
    if best[0] and len(chosen) > 1:
        raise UserError(
            f"the images of {path} are in each of {', '.join(chosen)}. Give data.{split}_images."
        )
    return chosen[0]


# YOLO


def _find_yolo(root: str, val_fraction: float) -> Layout | None:
    paths = [p for ending in ("*.yaml", "*.yml") for p in sorted(Path(root).glob(ending))]
    own = [p for p in paths if re.search(rb"^names\s*:", p.read_bytes(), re.M)]
    if len(own) > 1:
        raise UserError(f"several YOLO sets: {', '.join(map(str, own))}. Give one of the files.")
    if own:
        return _yolo_layout(str(own[0]), val_fraction)
    if any((Path(root) / "labels").glob("**/*.txt")):
        raise UserError(
            "label files in labels/ and no data.yaml. Write one with the names of the classes and "
            "the image folders, such as:\n  names: [cat, dog]\n  train: images/train\n"
            "  val: images/val"
        )
    return None


def _yolo_layout(path: str, val_fraction: float) -> Layout:
    values = yolo.read_yaml(path)
    train = yolo.find_places(path, values, "train")
    if not train:
        raise UserError(f"{path}: no train. Name the folder of the training images there.")
    key = next((k for k in ("val", "valid", "validation", "test") if values.get(k)), "train")
    val = yolo.find_places(path, values, key)
    is_split = key == "train" or val == train
    return Layout(
        "YOLO",
        SplitSource(
            *("yolo", path, ", ".join(train), "train"),
            share=(val_fraction, 1.0) if is_split else ALL,
        ),
        SplitSource(
            *("yolo", path, ", ".join(val), key), share=(0.0, val_fraction) if is_split else ALL
        ),
    )


# Pascal VOC


def _find_voc(root: str, val_fraction: float) -> Layout | None:
    there = {entry.name.lower(): entry.path for entry in _folders(root)}
    for split in ("valid", "val", "test"):  # Roboflow's: pictures and XML files side by side
        train, val = there.get("train"), there.get(split)
        if train and val and _has_xml(train) and _has_xml(val):
            return Layout(
                "Pascal VOC", SplitSource("voc", train, train), SplitSource("voc", val, val)
            )
    pages = there.get("annotations", root)
    if not _has_xml(pages):
        return None
    images = there.get("jpegimages") or there.get("images") or pages
    lists = os.path.join(there.get("imagesets", ""), "Main")
    names = {n: f"{lists}/{n}.txt" for n in ("train", "trainval", "val", "test")}
    names = {n: path for n, path in names.items() if os.path.isfile(path)}
    for first, second in (("train", "val"), ("trainval", "test"), ("train", "test")):
        if {first, second} <= names.keys():
            return Layout(
                "Pascal VOC",
                SplitSource("voc", pages, images, names[first]),
                SplitSource("voc", pages, images, names[second]),
            )
    one = next(iter(names.values()), "")
    return Layout(
        "Pascal VOC",
        SplitSource("voc", pages, images, one, (val_fraction, 1.0)),
        SplitSource("voc", pages, images, one, (0.0, val_fraction)),
    )


def _has_xml(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(".xml") for entry in entries)
