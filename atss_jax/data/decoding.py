"""Encoded images: their header, their pixels as upright uint8 RGB `[height, width, 3]`.

Decoding is OpenCV's, or Pillow's where OpenCV does not know the format.
"""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

ORIENTATION_TAG = 274
"""EXIF "Orientation"."""

_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def read_header(data: bytes) -> tuple[tuple[int, int], int]:
    """Stored (h, w) and EXIF orientation (1..8; 1 where there is none) without decoding pixels.

    Raises:
      ValueError: not the beginning of an image, or one that claims an absurd size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            try:
                orientation = image.getexif().get(ORIENTATION_TAG, 1)
            except Exception:  # Pillow raises many kinds on EXIF blocks that do not parse
                orientation = 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({_first_line(error)})") from None
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return (height, width), orientation if valid else 1


def is_truncated_jpeg(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker after the last scan; False for other formats.

    Some decoders fill the missing part with gray and say nothing.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] == b"\xff\xd9":
        return False
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def decode(data: bytes, orientation: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB; alpha is dropped, 16 bits keep the upper 8, gray is repeated.

    Args:
      data: the file's bytes.
      orientation: EXIF orientation to undo; 1 takes the pixels as stored.

    Raises:
      ValueError: does not decode, or is cut off.
    """
    if not data:
        raise ValueError("the file is empty")
    if is_truncated_jpeg(data):
        raise ValueError("the JPEG is cut off: its end marker is missing")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS)
    except cv2.error:
        image = None
    return orient(_decode_with_pillow(data) if image is None else image, orientation)


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 or 32 bits of gray; convert() would clip them
                gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"does not decode ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    text = str(error).split("\n")[0].split("<")[0].strip()
    return f"{type(error).__name__}: {text}"


def orient(image: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Turns stored pixels as their EXIF orientation (1..8) asks for."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def oriented_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(h, w) after `orient`."""
    return (size[1], size[0]) if orientation >= 5 else size
