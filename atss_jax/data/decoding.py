"""Encoded images: their header, their pixels as upright uint8 RGB `[height, width, 3]`.

Only a list of formats is ever opened, by their first bytes: none of them starts a program. Decoding
is OpenCV's, or Pillow's where OpenCV does not know the format. Whatever a decoder raises, the image
is a bad one and the error a ValueError.
"""

import contextlib
import io
import re
import threading
from collections.abc import Generator
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from atss_jax.data import jpeg_markers

ORIENTATION_TAG = 274
"""EXIF "Orientation"."""
BITS_PER_SAMPLE_TAG = 258
"""TIFF "BitsPerSample"."""
MAX_PIXELS = 178_956_970
"""Default of `data.max_pixels`: Pillow's own limit, 0.5 GB of RGB."""

PIXELS_AT_ONCE = 2**25
"""px that the threads of a process decode at the same time: 0.1 to 0.7 GB. A larger image, or three
cameras' pictures of 12 million, wait for each other."""
DEEP_WEIGHT = 3
"""A sample of more than 8 bits takes so much more memory on its way to 8."""

Image.MAX_IMAGE_PIXELS = None  # for the process: `max_pixels` is checked in its place

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA")
"""Pillow's names of the formats that are read. PostScript, which starts a program, and the rare
ones with weak decoders are not among them."""

_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
_READ_DEEP_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
"""More than 8 bits are read as BGR: OpenCV 5.0.0 reads TIFF files of 16 bits wrong as RGB."""

_FOREIGN = (
    (re.compile(rb"version https://git-lfs"), "a git-LFS pointer: run `git lfs pull`"),
    (re.compile(rb"\s*(<!doctype html|<html)", re.I), "an HTML page, as a failed download leaves"),
    (re.compile(rb"\s*<(\?xml|svg)", re.I), "XML or SVG: render it to PNG"),
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms])", re.S), "HEIC: convert it to JPEG or PNG"),
    (re.compile(rb".{128}DICM", re.S), "DICOM: export its pixels to PNG"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array: save it as PNG"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript, which is never run: render it to PNG"),
    (re.compile(rb"%PDF"), "PDF: render it to PNG"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b"), "a compressed archive: unpack it"),
)
"""First bytes of what people have under an image's name, and what to say of it."""


@runtime_checkable
class ReadableFile(Protocol):
    """What a header is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves to a byte."""
        ...


class TooManyPixels(ValueError):
    """An image of more than `data.max_pixels`."""


class _Budget:
    """An amount that threads share; what is larger than all of it has all of it for itself."""

    def __init__(self, limit: int):
        self.limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Generator[None, None, None]:
        """Waits until the amount is free, and holds it."""
        amount = min(amount, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self.limit)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


_budget = _Budget(PIXELS_AT_ONCE)


class Header(NamedTuple):
    """What an image says of itself before its pixels."""

    size: tuple[int, int]
    """Stored (h, w), px."""
    orientation: int
    """EXIF orientation, 1..8; 1 where there is none."""
    bits: int
    """Bits per sample: 8, or more where `decode` scales."""


def read_header(source: bytes | ReadableFile, max_pixels: int | None = None) -> Header:
    """Size, orientation and depth without decoding pixels.

    Args:
      source: the file's bytes, or the open file, of which no more is read than is needed.
      max_pixels: limit of height * width; None for a size that `decode` will judge.

    Raises:
      ValueError: not the beginning of an image of a known format.
      TooManyPixels: it is larger than the limit.
    """
    size = None
    if isinstance(source, bytes) and _is_jpeg(source):
        size = jpeg_markers.plain_size(source)
    header = _ask_pillow(source) if size is None else Header(size, 1, 8)
    return _within(header, max_pixels)


def _within(header: Header, max_pixels: int | None) -> Header:
    """The header of an image that may be decoded.

    Raises:
      ValueError, TooManyPixels: as `read_header`.
    """
    height, width = header.size
    if max_pixels is not None and height * width > max_pixels:
        raise TooManyPixels(
            f"{width}x{height} px (w x h) are more than data.max_pixels={max_pixels}. Raise it if "
            "the image is meant to be that large, or cut it into tiles"
        )
    if min(height, width) < 1:
        raise ValueError(f"not a readable image (its size is {width}x{height})")
    return header


def _ask_pillow(source: bytes | ReadableFile) -> Header:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    beginning = file.read(1024)
    file.seek(0)
    if not beginning:
        raise ValueError("the file is empty")
    for pattern, what in _FOREIGN:
        if pattern.match(beginning):
            raise ValueError(f"not a readable image (it is {what})")
    try:
        with Image.open(file, formats=FORMATS) as image:  # type: ignore[arg-type]
            width, height = image.size
            return Header((height, width), _orientation(image), _bits(image, beginning))
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise ValueError(f"not a readable image ({_first_line(error)})") from None


def _orientation(image: Image.Image) -> int:
    try:
        if image.format == "PNG" and "exif" not in image.info:
            return 1  # Pillow would decode the pixels to look behind them
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # many kinds on EXIF blocks that do not parse
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _bits(image: Image.Image, beginning: bytes) -> int:
    if image.mode in ("I", "F"):
        return 32 if image.format == "TIFF" else 16
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return 16 if beginning[24] == 16 else 8
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS_PER_SAMPLE_TAG, (8,))  # type: ignore[attr-defined]
        return max(8, *bits)
    return 8


def _is_jpeg(data: bytes) -> bool:
    return data[:2] == jpeg_markers.START


def is_cut(data: bytes) -> bool:
    """Whether a file ends before its image does, as far as its format tells."""
    return jpeg_markers.is_truncated(data) if _is_jpeg(data) else _is_cut_elsewhere(data)


def _is_cut_elsewhere(data: bytes) -> bool:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _is_cut_png(data)
    return may_be_cut(data[:16], b"", len(data))


def _is_cut_png(data: bytes) -> bool:
    """Walks the chunks, since OpenCV allocates what a chunk claims to hold, up to 2 GB."""
    place = 8
    while place + 12 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        place += 12 + length
        if kind == b"IEND":
            return place > len(data)
    return True


def may_be_cut(beginning: bytes, end: bytes, length: int) -> bool:
    """Whether the ends of a file leave it open if the file is complete; its whole would tell.

    Args:
      beginning: at least its first 16 bytes.
      end: its last bytes.
      length: of the file, bytes.
    """
    if _is_jpeg(beginning):
        return jpeg_markers.END not in end
    if beginning[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in end
    if beginning[:4] == b"RIFF":
        return length < int.from_bytes(beginning[4:8], "little") + 8
    return False


def decode(
    data: bytes,
    orientation: int = 1,
    max_pixels: int = MAX_PIXELS,
    *,
    is_known_whole: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB; alpha is dropped, gray is repeated, more than 8 bits are scaled.

    Args:
      data: the file's bytes.
      orientation: EXIF orientation to undo; 1 takes the pixels as stored.
      max_pixels: limit of height * width, checked before anything is decoded.
      is_known_whole: the end was found before; looking for it takes 3 % of decoding.

    Raises:
      ValueError: does not decode, is cut off or too large, or has values of unknown range.
    """
    size = jpeg_markers.plain_size(data, is_upright=False) if _is_jpeg(data) else None
    try:
        if size is None:
            header = read_header(data, max_pixels)
        else:  # its EXIF is not asked again
            header = _within(Header(size, 1, 8), max_pixels)
    except ValueError as error:
        raise ValueError(f"does not decode: {error}") from None
    if not is_known_whole and is_cut(data):
        raise ValueError("the file is cut off: its end marker is missing")
    cost = header.size[0] * header.size[1] * (1 if header.bits == 8 else DEEP_WEIGHT)
    with _budget.taken(cost):
        return orient(to_uint8(_decode_whole(data, header)), orientation)


def _decode_whole(data: bytes, header: Header) -> Shaped[np.ndarray, "h w 3"]:
    image = None
    if header.bits <= 16:  # OpenCV is loud about the others
        try:
            encoded = np.frombuffer(data, np.uint8)
            if header.bits == 8:
                image = cv2.imdecode(encoded, _READ_FLAGS)
            else:
                image = cv2.imdecode(encoded, _READ_DEEP_FLAGS)
                image = None if image is None else image[..., ::-1]
        except Exception:  # Pillow decides
            image = None
    if image is None or image.ndim != 3 or image.shape[:2] != header.size:
        image = _decode_with_pillow(data)
    return image


def _decode_with_pillow(data: bytes) -> Shaped[np.ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return rgb_of(image)
    except Exception as error:  # as in read_header
        raise ValueError(f"does not decode ({_first_line(error)})") from None


def rgb_of(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a Pillow image of any mode; more than 8 bits are scaled.

    Raises:
      ValueError: as in `to_uint8`, or Pillow does not convert the mode.
    """
    if image.mode[0] in "IF":  # convert() would clip them
        return np.repeat(to_uint8(np.asarray(image)[..., None]), 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def to_uint8(image: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Samples of any type in 0..255.

    Files do not say how many of their bits they use, so integers are scaled by the smallest of 8,
    12 and 16 bits that holds the largest sample, and floats by 1 or 255 likewise: a 12-bit picture
    in 16 bits does not turn black.

    Raises:
      ValueError: negative, not finite or larger samples.
    """
    if image.dtype == np.uint8:
        return image
    least, most = float(image.min()), float(image.max())
    is_float = np.issubdtype(image.dtype, np.floating)
    ranges = (1.0, 255.0) if is_float else (255.0, 4095.0, 65535.0)
    limit = next((r for r in ranges if most <= r), None)
    if limit is None or least < 0 or not np.isfinite(least):
        allowed = "0..1 or 0..255" if is_float else "0..255, 0..4095 or 0..65535"
        raise ValueError(
            f"samples of type {image.dtype} lie in {least:g}..{most:g}, not in {allowed}: their "
            "range is unknown. Convert the image to 8 bits"
        )
    scaled = image.astype(np.float32)
    scaled *= np.float32(255.0 / limit)
    return np.rint(scaled, out=scaled).astype(np.uint8)


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
