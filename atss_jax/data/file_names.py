"""File names of an annotation file -> files of a folder, where other software wrote them otherwise.

A name is read as another file only where exactly one can be meant.
"""

import os
import re
import unicodedata
from collections import defaultdict
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit


def leaves_folder(name: str) -> bool:
    """Whether a relative name is absolute, or climbs out of its folder by ".."."""
    if ".." not in name and not name.startswith("/"):
        return False
    normal = os.path.normpath(name)
    return os.path.isabs(normal) or normal == ".." or normal.startswith("../")


def name_of_url(url: str) -> str:
    """The path of a URL without its host: "train2017/1.jpg" of "http://host/train2017/1.jpg"."""
    return unquote(urlsplit(url).path).lstrip("/")


class FolderListing:
    """All files below a local folder, listed when a name is first looked up.

    Args:
      folder: path of the folder.
    """

    def __init__(self, folder: str):
        self._folder = folder

    @cached_property
    def _files(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Relative paths by folded path, and by folded last part."""
        by_path, by_last = defaultdict(list), defaultdict(list)
        for root, _, files in os.walk(self._folder):
            below = os.path.relpath(root, self._folder)
            for file in files:
                path = file if below == "." else f"{below}/{file}"
                by_path[_fold(path)].append(path)
                by_last[_fold(file)].append(path)
        return by_path, by_last

    def find(self, name: str) -> str | None:
        """The one file that a name can mean, relative to the folder; None for none or several.

        What may differ: upper and lower case, composed or decomposed accents, backslashes, spaces
        at the ends, and the folder's own path (or a URL's host) in front.
        """
        for candidate in self._candidates(name):
            found = self._files[0].get(_fold(candidate), [])
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def hint(self, name: str) -> str:
        """What may be wrong with a name that was not found; empty where nothing is known."""
        if "://" in name:
            return "; it is a URL: download the images, and give their names in the folder"
        parts = _parts(name)
        if several := self._files[0].get(_fold("/".join(parts)), [])[:2]:
            return f"; it may mean {' or '.join(map(repr, several))}"
        elsewhere = self._files[1].get(_fold(parts[-1]), []) if parts else []
        return f"; a file of that name is at {elsewhere[0]!r} in the folder" if elsewhere else ""

    def _candidates(self, name: str) -> list[str]:
        """Paths relative to the folder, the longest first."""
        parts = _parts(name_of_url(name) if "://" in name else name)
        if not parts or ".." in parts:
            return []
        if "://" in name or re.match(r"\s*([/\\]|[A-Za-z]:)", name):
            starts = range(len(parts))  # absolute elsewhere: any part may be ours
        else:
            own = [part for part in PurePosixPath(self._folder).parts if part != "/"]
            ours = [k for k in range(1, len(parts)) if own[-k:] == parts[:k]]
            starts = [0, *ours]
        return ["/".join(parts[k:]) for k in starts]


def _parts(name: str) -> list[str]:
    return [p for p in name.strip().replace("\\", "/").split("/") if p not in ("", ".")]


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
