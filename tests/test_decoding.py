"""Every file decodes as Pillow says, or is refused by name of what is wrong with it."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from atss_jax.data import decoding, jpeg_markers


@pytest.mark.parametrize("compression", [1, 5, 8])  # none, LZW, deflate
def test_deep_colour_tiff(compression):
    samples = np.random.default_rng(0).integers(0, 4096, (20, 30, 3)).astype(np.uint16)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression]
    done, data = cv2.imencode(".tif", samples[..., ::-1], options)
    assert done
    found = decoding.decode(data.tobytes())
    np.testing.assert_array_equal(found, np.rint(samples.astype(np.float32) * (255 / 4095)))


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


def jpeg(seed: int = 0, size: tuple[int, int] = (64, 80), **keywords) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", **keywords)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("length", [0, 5, 300, 20_000, 500_000])
def test_bytes_behind_a_jpeg_neither_hide_nor_fake_a_cut(progressive, length):
    data = jpeg(progressive=progressive)
    rng = np.random.default_rng(length)
    for _ in range(10):
        tail = rng.bytes(length)
        assert not jpeg_markers.is_truncated(data + tail)
        assert not jpeg_markers.is_truncated(data + tail + b"\xff\xda")
    for share in (0.3, 0.5, 0.9):
        assert jpeg_markers.is_truncated(data[: int(len(data) * share)])
    assert jpeg_markers.is_truncated(data[:-2] + b"\xff\xe0\x00\x10 a video \xff\xd9")


JPEGS: dict[str, dict] = {
    "colour": {},
    "gray": {"mode": "L"},
    "progressive": {"progressive": True},
    "half chroma": {"subsampling": 2},
    "comment": {"comment": b"x" * 3000},
    "icc": {"icc_profile": b"p" * 70_000},
    "cmyk": {"mode": "CMYK"},
    "exif": {"orientation": 5},
    "restarts": {"restart_marker_blocks": 2},
}
PLAIN_JPEGS = {"colour", "gray", "progressive", "half chroma", "comment", "restarts"}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_headers_by_their_markers_are_pillows(kind):
    keywords = dict(JPEGS[kind])
    mode = keywords.pop("mode", "RGB")
    if "orientation" in keywords:
        keywords["exif"] = Image.Exif()
        keywords["exif"][decoding.ORIENTATION_TAG] = keywords.pop("orientation")
    noise = np.random.default_rng(3).integers(0, 256, (37, 91, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", **keywords)
    data = buffer.getvalue()
    assert jpeg_markers.plain_size(data) == ((37, 91) if kind in PLAIN_JPEGS else None)
    expected = decoding.read_header(io.BytesIO(data))  # an open file: Pillow reads it
    assert decoding.read_header(data) == expected == ((37, 91), 5 if kind == "exif" else 1, 8)
    for length in range(0, 700, 7):
        assert jpeg_markers.plain_size(data[:length]) in (None, (37, 91))
    assert not jpeg_markers.is_truncated(data)
    assert all(jpeg_markers.is_truncated(data[:n]) for n in range(2, len(data) - 1, 101))


def test_ends_and_chunks_of_a_png():
    data = encode(Image.fromarray(np.zeros((9, 12, 3), np.uint8)), "PNG")
    assert not decoding.is_cut(data) and not decoding.is_cut(data + b"IEND and more")
    assert all(decoding.is_cut(data[:length]) for length in range(8, len(data)))
    place = data.index(b"IDAT") - 4
    for length in (2**31 - 1, 2**32 - 1, len(data)):
        claims = data[:place] + length.to_bytes(4, "big") + data[place + 4 :]
        with pytest.raises(ValueError, match="cut off"):
            decoding.decode(claims)


def test_second_picture_of_an_mpo_does_not_matter():
    first, second = (Image.open(io.BytesIO(jpeg(seed))) for seed in (0, 1))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    data = buffer.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = decoding.decode(data[: len(data) * 3 // 4]).astype(int)
    assert np.abs(found - expected).max() <= 3  # two JPEG libraries


RAMP = np.linspace(0, 1, 16 * 12).reshape(12, 16)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "TIFF"),
        ((RAMP * 4095).astype(np.uint16), "PNG"),
        ((RAMP * 4095).astype(np.uint16), "TIFF"),
        ((RAMP * 255).astype(np.uint16), "PNG"),
        ((RAMP * 255).astype(np.int32), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
    ],
)
def test_deep_samples_are_scaled_by_their_range(samples, kind):
    data = encode(Image.fromarray(samples), kind)
    assert decoding.read_header(data).bits > 8
    found = decoding.decode(data)
    assert np.abs(found.astype(float) - 255 * RAMP[..., None]).max() <= 1.01


@pytest.mark.parametrize(
    "samples",
    [
        np.full((4, 4), -1, np.int32),
        np.full((4, 4), 70_000, np.int32),
        np.full((4, 4), 256.5, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), -0.5, np.float32),
    ],
)
def test_samples_of_unknown_range_are_refused(samples):
    with pytest.raises(ValueError, match="their range is unknown"):
        decoding.decode(encode(Image.fromarray(samples), "TIFF"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0" * 128 + b"DICM\x02\0\0\0", "DICOM"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "NumPy array"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"PK\x03\x04", "archive"),
        (b"plain text", "not a readable image"),
    ],
)
def test_foreign_files_are_named(data, message):
    for read in (decoding.read_header, decoding.decode):
        with pytest.raises(ValueError, match=message):
            read(data)


def test_pixels_are_limited_before_decoding():
    data = encode(Image.new("L", (300, 200)), "PNG")
    assert decoding.decode(data, max_pixels=60_000).shape == (200, 300, 3)
    with pytest.raises(decoding.TooManyPixels, match="300x200 px .* data.max_pixels=59999"):
        decoding.read_header(data, 59_999)
    with pytest.raises(ValueError, match=r"data\.max_pixels=59999"):
        decoding.decode(data, max_pixels=59_999)


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (599, 1), (1200, 2), (10_000, 4)])
def test_threads_share_the_pixels_that_are_decoded_at_once(monkeypatch, limit, at_once):
    data = encode(Image.new("L", (30, 20)), "PNG")
    running, most, decode = [], [], decoding._decode_whole

    def counted(*args):
        running.append(1)
        most.append(len(running))
        time.sleep(0.03)
        running.pop()
        return decode(*args)

    monkeypatch.setattr(decoding, "_decode_whole", counted)
    monkeypatch.setattr(decoding, "_budget", decoding._Budget(limit))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decoding.decode, [data] * 12))
    assert all(image.shape == (20, 30, 3) for image in images)
    assert max(most) == at_once


KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_an_image_or_a_value_error(kind):
    """Flipped, overwritten, cut and doubled bytes: no other exception, never another size."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    data = encode(picture, kind)
    assert decoding.decode(data).shape == (24, 32, 3)
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 8))):
            # half of the damage is in the header, where it does most
            limit = min(len(damaged), 64) if rng.random() < 0.5 else len(damaged)
            damaged[int(rng.integers(limit))] = int(rng.integers(256))
        if rng.random() < 0.3:
            damaged = damaged[: int(rng.integers(1, len(damaged)))]
        try:
            size, *_ = decoding.read_header(bytes(damaged), 100_000)
            image = decoding.decode(bytes(damaged), max_pixels=100_000)
        except ValueError:
            continue
        assert image.shape == (*size, 3) and image.dtype == np.uint8
