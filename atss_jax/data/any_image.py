"""An image in whatever form a caller holds it -> upright RGB pixels."""

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from atss_jax.data import decoding, media
from atss_jax.errors import UserError
from atss_jax.typing import UInt8

ALLOWED = (
    "a path, bytes or a binary file of an encoded image, a PIL image, or a NumPy or JAX array, "
    "uint8 RGB [h, w, 3]"
)
"""What `read_image` takes, in words."""


def read_image(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of one image; an EXIF orientation is applied.

    Args:
      image: see `ALLOWED`.

    Raises:
      ValueError: it does not decode, or the array is not uint8 RGB.
      TypeError: something else was given.
      OSError: the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return media.read_image_file(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, io.BufferedIOBase | io.RawIOBase):
        image = image.read()
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        try:
            orientation = decoding.read_header(data).orientation
            return decoding.decode(data, orientation)
        except ValueError as error:
            raise UserError(f"image of {len(data)} bytes: {error}") from error
    if not hasattr(image, "__array__") or not hasattr(image, "dtype"):
        raise TypeError(f"an image of type {type(image).__name__}: give {ALLOWED}.")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UserError(
            f"an image of type {pixels.dtype} and shape {pixels.shape}: give uint8 RGB [h, w, 3]."
        )
    return pixels
