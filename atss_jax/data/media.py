"""Images and videos that people want looked at: upright pixels in, drawn frames out.

Unlike training data they have no annotations, so an EXIF orientation is always applied: the
coordinates are those of the upright picture. `media_files` finds the files.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from atss_jax.data import decoding
from atss_jax.errors import UserError
from atss_jax.typing import UInt8


def read_image_file(
    path: str | os.PathLike, max_pixels: int = decoding.MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as upright RGB.

    Args:
      path: of the file.
      max_pixels: limit of height * width.

    Raises:
      ValueError: it does not decode; names the file.
      OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        orientation = decoding.read_header(data).orientation
        return decoding.decode(data, orientation, max_pixels)
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
