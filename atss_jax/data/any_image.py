"""An image in whatever form a caller holds it -> upright RGB pixels."""

import http.client
import inspect
import os
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from atss_jax.data import decoding, media
from atss_jax.errors import UserError
from atss_jax.typing import UInt8

ALLOWED = (
    "a path, an http(s) address, bytes or a binary file of an encoded image, a PIL image, or a "
    "NumPy or JAX array, uint8 RGB [h, w, 3]"
)
"""What `read_image` takes, in words."""

URL_TIMEOUT = 30
"""Seconds that a server may be silent."""
MAX_URL_BYTES = 2**28
"""A longer answer is refused; a JPEG of 178 million pixels fits."""


def is_url(image: Any) -> bool:
    """Whether this is an address, not a path."""
    return isinstance(image, str) and image.startswith(("http://", "https://"))


def fetch_url(url: str) -> bytes:
    """What a server answers.

    Raises:
      UserError: no answer, an error, or too long an answer.
    """
    try:
        with urllib.request.urlopen(url, timeout=URL_TIMEOUT) as answer:  # noqa: S310 - http(s)
            data = answer.read(MAX_URL_BYTES + 1)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(
            f"{url}: cannot be read ({error}). Check the address; a space in it is written %20."
        ) from error
    if len(data) > MAX_URL_BYTES:
        raise UserError(f"{url}: longer than {MAX_URL_BYTES} bytes. Give an image.")
    return data


def _read_file(file: Any) -> bytes | bytearray | memoryview:
    """All bytes of anything with a method `read`.

    Raises:
      TypeError: it gives something else.
    """
    data = file.read()
    if inspect.iscoroutine(data):
        data.close()
        raise TypeError("an asynchronous file: give its bytes, as in `await file.read()`.")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"a file whose read() gives {type(data).__name__}, not bytes: open it in binary mode, "
            'as in open(path, "rb").'
        )
    return data


def read_image(
    image: Any, *, channel_order: str = "rgb", max_pixels: int = decoding.MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of one image; an EXIF orientation is applied.

    Args:
      image: see `ALLOWED`.
      channel_order: of an array; everything else knows its own. Nothing in the numbers tells RGB
        from BGR, so that OpenCV's arrays need "bgr" said.
      max_pixels: limit of height * width of what is still encoded.

    Raises:
      ValueError: it does not decode, or the array is not uint8 RGB.
      TypeError: something else was given.
      OSError: the file cannot be read.
    """
    if channel_order not in ("rgb", "bgr"):
        raise UserError(f'channel_order={channel_order!r}: use "rgb" or "bgr".')
    if is_url(image):
        image = fetch_url(image)
    if isinstance(image, str | os.PathLike):
        return media.read_image_file(image, max_pixels)
    if isinstance(image, Image.Image):
        try:
            return decoding.rgb_of(ImageOps.exif_transpose(image))
        except ValueError as error:
            raise UserError(f"a PIL image of mode {image.mode!r}: {error}") from error
    if callable(getattr(image, "read", None)):
        image = _read_file(image)
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        try:
            orientation = decoding.read_header(data).orientation
            return decoding.decode(data, orientation, max_pixels)
        except ValueError as error:
            raise UserError(f"image of {len(data)} bytes: {error}") from error
    if not hasattr(image, "__array__") or not hasattr(image, "dtype"):
        raise TypeError(f"an image of type {type(image).__name__}: give {ALLOWED}.")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(
            f"an image of type {pixels.dtype} and shape {pixels.shape}: give uint8 RGB [h, w, 3]."
        )
    return pixels if channel_order == "rgb" else np.ascontiguousarray(pixels[..., ::-1])
