"""Finds the images and videos that people name: files, folders, patterns. Imports no JAX."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atss_jax.errors import MissingFileError, UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"),
)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
HINT = 'Give images, videos, folders, or a pattern in quotes, as in "new/*.jpg".'


class Found(NamedTuple):
    """Files to look at, each once, in the order of the names that led to them."""

    images: list[Path]
    videos: list[Path]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is another program's by its name, and no data of the user.

    >>> [is_hidden(name) for name in ("._a.jpg", ".ipynb_checkpoints", "__MACOSX", "a.jpg")]
    [True, True, True, False]
    """
    return name.startswith(".") or name == "__MACOSX"


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file's name ends like a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find(sources: Sequence[str], output: str | os.PathLike = "") -> Found:
    """The files of all sources; one that several of them name is found once.

    Args:
      sources: files, folders (the images below them) and patterns (images and videos).
      output: folder of drawings; where it lies below a folder of images, it is not looked into.

    Raises:
      UserError: a source is not there, or there is no image in it; it is named.
    """
    files: dict[str, Path] = {}
    for source in sources:
        for path in _files_of(source, output):
            files.setdefault(os.path.abspath(path), path)
    videos = [path for path in files.values() if is_video(path)]
    return Found([path for path in files.values() if not is_video(path)], videos)


def _files_of(source: str, output: str | os.PathLike) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        below = [p for p in path.rglob("*") if not any(map(is_hidden, p.relative_to(path).parts))]
        found = [p for p in below if _is_image(p) and p.is_file()]
        drawings = Path(output).resolve()
        if output and path.resolve() in drawings.parents:
            found = [p for p in found if drawings not in p.resolve().parents]
        text = f"{source}: no image in this folder or below it"
    else:
        if not any(c in source for c in "*?["):
            raise MissingFileError(f"{source}: no such file or folder{_where(source)}. {HINT}")
        matches = [Path(match) for match in glob.glob(source, recursive=True)]
        found = [p for p in matches if (_is_image(p) or is_video(p)) and p.is_file()]
        text = f"{source}: no image or video matches this pattern"
    if not found:
        raise MissingFileError(f"{text}. {HINT} Images end in {', '.join(IMAGE_SUFFIXES)}.")
    return sorted(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _where(source: str) -> str:
    """Why a name that is no path cannot be found here."""
    return " on this machine; an address must be downloaded first" if "://" in source else ""


def check_readable(found: Found) -> None:
    """Looks at one file after the other until the header of one can be read.

    Args:
      found: the files.

    Raises:
      UserError: there is none; says why of the first file.
    """
    import cv2

    from atss_jax.data import decoding

    reasons = []
    for path in found.images:
        try:
            with path.open("rb") as file:
                decoding.read_header(file)
        except (ValueError, OSError) as error:
            reasons.append(f"{path}: {error}")
        else:
            return
    for path in found.videos:
        if cv2.VideoCapture(os.fspath(path)).isOpened():
            return
        reasons.append(f"{path}: OpenCV cannot open this video; convert it to .mp4")
    which = (
        "" if len(reasons) == 1 else f"none of the {len(reasons)} files can be read; the first: "
    )
    raise UserError(f"{which}{reasons[0]}. {HINT}")


def names_of(files: Sequence[Path]) -> list[str]:
    """Names of files below the deepest folder that holds all of them; no two are equal.

    Args:
      files: different ones.

    >>> names_of([Path("a/1.jpg"), Path("b/1.jpg")])
    ['a/1.jpg', 'b/1.jpg']
    """
    paths = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]
