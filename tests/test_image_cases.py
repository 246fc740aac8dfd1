"""Image files of every kind people have: as Pillow or arithmetic says, or refused by its kind."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.data.decoding import decode
from atss_jax.data.images import resized_size
from tests.test_coco import annotation, good_content, write_set

RNG = np.random.default_rng(16)
SMOOTH = (np.indices((40, 60)).sum(axis=0) * 2.5).astype(np.uint8)
"""A ramp [40, 60]: what any decoder gets right within a few levels."""
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], axis=-1)


def save(
    samples: np.ndarray | Image.Image, kind: str, mode: str | None = None, **keywords
) -> bytes:
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **keywords)
    return buffer.getvalue()


def transparent(mode: str) -> Image.Image:
    """Colours with half of the picture transparent."""
    alpha = Image.fromarray(
        np.where(np.arange(60) < 30, 0, 255).astype(np.uint8)[None].repeat(40, 0)
    )
    image = Image.fromarray(COLOUR if mode == "RGBA" else SMOOTH).convert(mode)
    image.putalpha(alpha)
    return image


def palette_with_transparency() -> bytes:
    return save(Image.fromarray(SMOOTH // 16).convert("P"), "PNG", transparency=3)


def frames(kind: str) -> bytes:
    """An animation; its first frame is the ramp."""
    more = [Image.fromarray(np.full_like(COLOUR, v)) for v in (0, 99)]
    keywords: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return save(
        SMOOTH if kind == "GIF" else COLOUR, kind, save_all=True, append_images=more, **keywords
    )


def twelve_bits() -> bytes:
    """Samples of 12 bits in a 16-bit TIFF file."""
    return save(np.round(SMOOTH / 255 * 4095).astype(np.uint16), "TIFF")


GRAY = SMOOTH[..., None].repeat(3, axis=-1)
ROUNDED = 8
"""Levels by which lossy formats may differ from the original."""
PICTURES: dict[str, tuple[bytes, np.ndarray, int]] = {
    "JPEG": (save(COLOUR, "JPEG", quality=95), COLOUR, ROUNDED),
    "JPEG, gray": (save(SMOOTH, "JPEG", quality=95), GRAY, ROUNDED),
    "JPEG, progressive": (save(COLOUR, "JPEG", quality=95, progressive=True), COLOUR, ROUNDED),
    "JPEG, 4:2:0": (save(COLOUR, "JPEG", quality=95, subsampling=2), COLOUR, ROUNDED),
    "JPEG, 4:4:4": (save(COLOUR, "JPEG", quality=95, subsampling=0), COLOUR, ROUNDED),
    "JPEG, CMYK": (save(COLOUR, "JPEG", "CMYK", quality=95), COLOUR, ROUNDED),
    "JPEG, bytes behind": (save(COLOUR, "JPEG", quality=95) + b"\xff\xd8" * 99, COLOUR, ROUNDED),
    "JPEG, profile": (save(COLOUR, "JPEG", quality=95, icc_profile=b"x" * 70_000), COLOUR, ROUNDED),
    "JPEG, 1 x 1": (save(np.full((1, 1, 3), 77, np.uint8), "JPEG"), np.full((1, 1, 3), 77), 2),
    "PNG": (save(COLOUR, "PNG"), COLOUR, 0),
    "PNG, gray": (save(SMOOTH, "PNG"), GRAY, 0),
    "PNG, 1 bit": (save(SMOOTH > 99, "PNG"), np.where(GRAY > 99, 255, 0), 0),
    "PNG, palette": (save(SMOOTH // 16 * 16, "PNG", "P"), GRAY // 16 * 16, 0),
    "PNG, alpha is dropped": (save(transparent("RGBA"), "PNG"), COLOUR, 0),
    "PNG, gray and alpha": (save(transparent("L"), "PNG"), GRAY, 0),
    "PNG, 16 bits": (save(SMOOTH.astype(np.uint16) * 257, "PNG"), GRAY, 0),
    "PNG, bytes behind": (save(COLOUR, "PNG") + b"more", COLOUR, 0),
    "WebP, lossless": (save(COLOUR, "WEBP", lossless=True), COLOUR, 0),
    "WebP": (save(COLOUR, "WEBP", quality=95), COLOUR, ROUNDED + 8),
    "WebP, animated": (frames("WEBP"), COLOUR, 0),
    "BMP": (save(COLOUR, "BMP"), COLOUR, 0),
    "BMP, 1 bit": (save(SMOOTH > 99, "BMP"), np.where(GRAY > 99, 255, 0), 0),
    "BMP, gray": (save(SMOOTH, "BMP"), GRAY, 0),
    "TIFF": (save(COLOUR, "TIFF"), COLOUR, 0),
    "TIFF, LZW": (save(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "TIFF, deflate": (save(SMOOTH, "TIFF", compression="tiff_adobe_deflate"), GRAY, 0),
    "TIFF, fax": (save(SMOOTH > 99, "TIFF", compression="group4"), np.where(GRAY > 99, 255, 0), 0),
    "TIFF, 12 bits": (twelve_bits(), GRAY, 1),
    "TIFF, 16 bits": (save(SMOOTH.astype(np.uint16) * 257, "TIFF"), GRAY, 0),
    "TIFF, 32 bits": (save(SMOOTH.astype(np.int32) * 257, "TIFF"), GRAY, 0),
    "TIFF, floats to 1": (save(SMOOTH.astype(np.float32) / 255, "TIFF"), GRAY, 0),
    "TIFF, floats to 255": (save(SMOOTH.astype(np.float32), "TIFF"), GRAY, 0),
    "GIF": (save(SMOOTH, "GIF"), GRAY, 0),
    "GIF, animated": (frames("GIF"), GRAY, 0),
    "PPM": (save(COLOUR, "PPM"), COLOUR, 0),
    "PGM": (save(SMOOTH, "PPM"), GRAY, 0),
    "PBM": (save(SMOOTH > 99, "PPM"), np.where(GRAY > 99, 255, 0), 0),
    "TGA": (save(COLOUR, "TGA"), COLOUR, 0),
    "JPEG 2000": (save(COLOUR, "JPEG2000", irreversible=False), COLOUR, 0),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pixels(kind, tmp_path):
    """As they were before they were encoded; the same through the checks of a set."""
    data, expected, tolerance = PICTURES[kind]
    found = decode(data)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    content = good_content()
    height, width = expected.shape[:2]
    content["images"][2] |= {"file_name": "odd.img", "height": height, "width": width}
    content["annotations"] = []
    (tmp_path / "odd.img").write_bytes(data)
    dataset = load_coco(*write_set(tmp_path, content), name="mine")
    assert dataset.sizes[0].tolist() == [height, width] and dataset.image_bytes(0) == data


def test_palette_transparency_is_the_palettes_colour():
    data = palette_with_transparency()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


def link(path: Path) -> None:
    path.with_name("other").write_bytes(save(COLOUR, "PNG"))
    path.symlink_to(path.with_name("other"))


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    path.symlink_to(path)


def bytes_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


NOISE = RNG.integers(0, 256, (40, 60, 3), np.uint8)
FILES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "symbolic link": (link, None),
    "link to nothing": (dangling, "image_missing"),
    "link to itself": (loop, "image_unreadable"),
    "pipe": (os.mkfifo, "image_unreadable"),
    "folder": (os.mkdir, "image_missing"),
    "empty": (bytes_of(b""), "image_undecodable"),
    "half of a JPEG": (bytes_of(save(NOISE, "JPEG")[:2000]), "image_truncated"),
    "JPEG without its end": (bytes_of(save(NOISE, "JPEG")[:-2]), "image_truncated"),
    "half of a PNG": (bytes_of(save(NOISE, "PNG")[:2000]), "image_truncated"),
    "PNG without its end": (bytes_of(save(NOISE, "PNG")[:-4]), "image_truncated"),
    "half of a WebP": (bytes_of(save(NOISE, "WEBP")[:400]), "image_undecodable"),
    "half of a BMP": (bytes_of(save(NOISE, "BMP")[:2000]), "image_undecodable"),
    "half of a TIFF": (bytes_of(save(NOISE, "TIFF")[:2000]), "image_undecodable"),
    "PostScript": (bytes_of(save(NOISE, "EPS")), "image_undecodable"),
    "PDF": (bytes_of(b"%PDF-1.4"), "image_undecodable"),
    "text": (bytes_of(b"a picture"), "image_undecodable"),
    "another size": (bytes_of(save(NOISE[:39], "PNG")), "image_size_mismatch"),
    "turned by its pixels": (
        bytes_of(save(NOISE.swapaxes(0, 1).copy(), "PNG")),
        "image_size_mismatch",
    ),
    "too many pixels": (bytes_of(save(Image.new("1", (2000, 1500)), "PNG")), "image_undecodable"),
    "floats above 255": (
        bytes_of(save(np.full((40, 60), 300.0, np.float32), "TIFF")),
        "image_undecodable",
    ),
    "negative": (bytes_of(save(np.full((40, 60), -1, np.int32), "TIFF")), "image_undecodable"),
    "NaN": (bytes_of(save(np.full((40, 60), np.nan, np.float32), "TIFF")), "image_undecodable"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind, tmp_path):
    """Read, or one bad image of its kind under skip and an error that names it under strict."""
    make, expected = FILES[kind]
    args = write_set(tmp_path, good_content())
    (tmp_path / "3.png").unlink()
    make(tmp_path / "3.png")
    config = DataConfig(on_error="skip", max_bad_fraction=1.0, max_pixels=10_000)
    dataset = load_coco(*args, name="mine", config=config)
    assert dict(dataset.health.bad) == ({} if expected is None else {expected: 1})
    assert dataset.num_records == 3 - (expected is not None)
    if expected is not None:
        with pytest.raises(ValueError, match=r"image 3 \(.*3\.png\)"):
            load_coco(*args, name="mine", config=DataConfig(max_pixels=10_000))


SIZES = {
    # (h, w), short, long: the short side s' = round(long * short / long side) where long binds
    (375, 1242): ((240, 320), (97, 320)),
    (1080, 2560): ((240, 320), (135, 320)),
    (20, 4000): ((800, 1333), (7, 1333)),
    (4000, 20): ((800, 1333), (1333, 7)),
    (1, 5000): ((240, 320), (1, 320)),
    (480, 640): ((800, 1333), (800, 1066)),
    (1, 1): ((240, 320), (240, 240)),
}


@pytest.mark.parametrize("size", SIZES)
def test_odd_shapes_fit_their_limits(size):
    limits, expected = SIZES[size]
    assert resized_size(size, *limits) == expected


BOXES = {
    "whole image": ([0, 0, 60, 40], [0, 0, 60, 40]),
    "fractions": ([1.25, 2.5, 3.5, 4.75], [1.25, 2.5, 4.75, 7.25]),
    "sticks out right and below": ([50, 30, 20, 20], [50, 30, 60, 40]),
    "sticks out left and above": ([-5, -7, 20, 20], [0, 0, 15, 13]),
    "larger than the image": ([-10, -10, 100, 100], [0, 0, 60, 40]),
    "thin": ([10, 10, 0.25, 20], [10, 10, 10.25, 30]),
    "integers as floats": ([3.0, 4.0, 5.0, 6.0], [3, 4, 8, 10]),
    "minus zero": ([-0.0, -0.0, 5, 6], [0, 0, 5, 6]),
}


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_are_clipped_corners(kind, tmp_path):
    """x1, y1, x2, y2 by hand; evaluation keeps what the file says."""
    box, corners = BOXES[kind]
    content = good_content()
    content["annotations"] = [annotation(1, 3, 4, box)]
    dataset = load_coco(*write_set(tmp_path, content), name="mine")
    assert dataset.boxes(0).tolist() == [corners]
    assert dataset.coco_ground_truth()["annotations"][0]["bbox"] == box


FIELDS = {
    "crowd": ({"iscrowd": 1}, 0, 1),
    "crowd as true": ({"iscrowd": True}, 0, 1),
    "crowd as 1.0": ({"iscrowd": 1.0}, 0, 1),
    "ignore is no field of COCO's": ({"ignore": 1}, 1, 0),
    "no area": ({"area": None}, 1, 0),
    "a mask": ({"segmentation": {"counts": "x", "size": [40, 60]}}, 1, 0),
    "attributes of other software": ({"attributes": {"occluded": True}, "score": 0.5}, 1, 0),
    "id of 20 digits": ({"id": 2**66}, 1, 0),
    "negative id": ({"id": -3}, 1, 0),
    "text id": ({"id": "a-1"}, 1, 0),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_annotations(kind, tmp_path):
    """Boxes to train on, and crowds."""
    change, boxes, crowds = FIELDS[kind]
    content = good_content()
    content["annotations"] = [annotation(1, 3, 4, [5, 5, 10, 10]) | change]
    dataset = load_coco(*write_set(tmp_path, content), name="mine")
    assert dataset.num_boxes.tolist() == [boxes, 0, 0]
    assert int(dataset.annotations.is_crowd.sum()) == crowds
    assert ("ignore_not_read" in dataset.health.odd) == ("ignore" in change)
