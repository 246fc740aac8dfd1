"""Where the splits of a set are: what the finders of all formats return, and what they share."""

import os
import re
from typing import NamedTuple

from atss_jax.data.content import ALL
from atss_jax.data.media_files import is_hidden

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class SplitSource(NamedTuple):
    """Where one split of a set is."""

    kind: str
    """A key of `formats.FORMATS`."""
    annotations: str
    """JSON file, data.yaml, or folder of XML files."""
    images: str = ""
    """Folder that file names start from; YOLO: the folders, for messages."""
    names: str = ""
    """YOLO: the split's name in data.yaml. VOC: the list of names; "" for all."""
    share: tuple[float, float] = ALL
    """Only the images whose `share_of` lies in [low, high)."""
    other_annotations: str = ""
    """VOC: the other split's folder of XML files, whose classes count too; "" where it is one."""

    def __str__(self) -> str:
        """On one line."""
        share = f", {self.share[1] - self.share[0]:.0%} of them by file name"
        part = "" if self.share == ALL else share
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


def folders(root: str) -> list[os.DirEntry]:
    """The folders in a folder, by name; without hidden ones."""
    with os.scandir(root) as entries:
        found = [e for e in entries if not (is_hidden(e.name) or e.name.startswith("__"))]
        return sorted((e for e in found if e.is_dir()), key=lambda e: e.name)


def files_of(folder: str, *suffixes: str) -> list[str]:
    """Names in a folder, sorted, without hidden ones.

    Args:
      folder: the path.
      *suffixes: endings in lower case; a name's own may be in upper case.
    """
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.name.lower().endswith(suffixes) and not is_hidden(e.name)]
        return sorted(e.name for e in found if e.is_file())


def split_word(path: str) -> str:
    """The split that a path names: "train", "val", "test" or ""."""
    words = re.split(r"[^a-z]+", path.lower())
    for split, names in _SPLIT_WORDS.items():
        if any(word in names for word in words):
            return split
    return ""
