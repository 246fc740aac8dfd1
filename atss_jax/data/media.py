"""Images and videos that people want looked at: from files, folders, globs and cameras' containers.

Unlike training data they have no annotations, so an EXIF orientation is always applied: the
coordinates are those of the upright picture. Pixels only; `predict.py` decides what to do with
them.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from atss_jax.data import decoding
from atss_jax.errors import MissingFileError, UserError
from atss_jax.typing import UInt8

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".tga"),
)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file's name ends like a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_images(pattern: str) -> list[Path]:
    """Image files of a folder (and its folders), a glob, or the one file named; sorted.

    Raises:
      FileNotFoundError: nothing there.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = [p for p in path.rglob("*") if p.is_file()]
    else:
        candidates = [Path(p) for p in glob.glob(pattern, recursive=True)]
    found = sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise MissingFileError(
            f"{pattern}: no image there. Give an image, a video, a folder or a quoted glob; images "
            f"end in {', '.join(IMAGE_SUFFIXES)}."
        )
    return found


def read_image_file(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as upright RGB.

    Raises:
      ValueError: it does not decode; names the file.
      OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        orientation = decoding.read_header(data).orientation
        return decoding.decode(data, orientation)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


class Video:
    """Frames of a video file, as RGB.

    Args:
      path: of the file.

    Attributes:
      fps: frames per second.
      num_frames: as the container claims; 0 where it does not.

    Raises:
      ValueError: not a video that OpenCV can open.
    """

    def __init__(self, path: str | os.PathLike):
        self._capture = cv2.VideoCapture(os.fspath(path))
        if not self._capture.isOpened():
            raise UserError(f"{path}: OpenCV cannot open this video. Convert it to .mp4.")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames in order."""
        while True:
            is_there, frame = self._capture.read()
            if not is_there:
                self._capture.release()
                return
            yield np.ascontiguousarray(frame[..., ::-1])


class VideoWriter:
    """Writes RGB frames of one size into an .mp4 file; a context manager.

    Args:
      path: of the file.
      fps: frames per second.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        self._path, self._fps = os.fspath(path), fps
        self._writer: Any = None

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a frame.

        Raises:
          OSError: the file cannot be written.
        """
        if self._writer is None:
            size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._path, code, self._fps, size)
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: cannot write a video there.")
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
