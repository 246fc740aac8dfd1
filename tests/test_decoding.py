"""Every file decodes as Pillow says, or is refused by name of what is wrong with it."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from atss_jax.data import decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_pillows(orientation):
    pixels = np.random.default_rng(2).integers(0, 256, (7, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[decoding.ORIENTATION_TAG] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    data = buffer.getvalue()
    assert decoding.read_header(data) == ((7, 5), orientation, 8)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decoding.decode(data, orientation), expected)
    np.testing.assert_array_equal(decoding.decode(data), pixels)  # as stored
    assert decoding.oriented_size((7, 5), orientation) == expected.shape[:2]


def test_awkward_files(shared):
    folder = shared / "data" / "awkward_images"
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        data = (folder / entry["file"]).read_bytes()
        if not entry["decodes"]:
            with pytest.raises(ValueError):
                decoding.read_header(data)
                decoding.decode(data)
            continue
        size, orientation, _ = decoding.read_header(data)
        assert size == (entry["height"], entry["width"]), entry["file"]
        assert orientation == (entry["exif_orientation"] or 1), entry["file"]
        image = decoding.decode(data)
        assert image.dtype == np.uint8 and image.shape == (*size, 3), entry["file"]
        if "rgb_mean" in entry:
            # CMYK differs by 1 between the libraries' conversions
            np.testing.assert_allclose(
                image.reshape(-1, 3).mean(axis=0),
                entry["rgb_mean"],
                atol=1.2,
                err_msg=entry["file"],
            )


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_modes_without_shared_files():
    """Gray, 16 bits, palette, alpha, 1 bit, CMYK, a format that only Pillow reads."""
    ramp = np.linspace(0, 255, 12 * 9).astype(np.uint8).reshape(9, 12)
    gray = Image.fromarray(ramp)
    for image, kind in (
        (gray, "PNG"),
        (gray.convert("P"), "PNG"),
        (Image.merge("LA", (gray, gray)), "PNG"),
        (Image.fromarray(ramp.astype(np.uint16) * 257), "PNG"),
        (gray.convert("RGBA"), "PNG"),
        (gray, "TGA"),
    ):
        found = decoding.decode(encode(image, kind))
        assert found.shape == (9, 12, 3), kind
        assert np.abs(found.astype(int) - ramp[..., None]).max() <= 1, (image.mode, kind)
    assert set(decoding.decode(encode(gray.convert("1"), "PNG")).reshape(-1)) == {0, 255}
    assert decoding.decode(encode(gray.convert("CMYK"), "JPEG")).shape == (9, 12, 3)


def test_cut_jpeg_is_not_filled_with_gray():
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")
    assert decoding.decode(data).shape == (64, 80, 3)
    assert decoding.decode(data + b"trailing bytes").shape == (64, 80, 3)
    with pytest.raises(ValueError, match="cut off"):
        decoding.decode(data[: len(data) // 2])
    with pytest.raises(ValueError, match="empty"):
        decoding.decode(b"")
    with pytest.raises(ValueError, match="does not decode"):
        decoding.decode(b"not an image")
