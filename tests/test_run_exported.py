"""The images that scripts/run_exported.py reads: the same pixels as the package, and bad files."""

import json
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest

import run_exported
from atss_jax.data import media
from atss_jax.data.images import resized_size


@pytest.mark.parametrize(
    ("factor", "kind", "limit"),
    [(1, np.uint8, 255), (1, np.uint16, 255), (16, np.uint16, 4095), (257, np.uint16, 65535)],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_are_scaled_as_in_training(tmp_path, suffix, factor, kind, limit, channels):
    rgb = np.random.default_rng(0).integers(1, 256, (20, 30, channels)) * factor
    path = str(tmp_path / f"image.{suffix}")
    assert cv2.imwrite(path, rgb[..., ::-1].astype(kind))
    mine = run_exported.read_image(path)
    wanted = np.rint(rgb.astype(np.float32) * np.float32(255 / limit))
    assert mine.dtype == np.uint8
    np.testing.assert_array_equal(mine, np.broadcast_to(wanted, (20, 30, 3)))
    if suffix == "png":
        np.testing.assert_array_equal(mine, media.read_image_file(path))


@pytest.mark.parametrize("samples", [(0.5, np.nan), (-1, 300)])
def test_samples_of_unknown_range_are_refused(tmp_path, samples):
    path = str(tmp_path / "float.tif")
    assert cv2.imwrite(path, np.repeat(np.array(samples, np.float32), 30).reshape(4, 5, 3))
    with pytest.raises(ValueError, match="range is unknown. Convert the image to 8 bits"):
        run_exported.read_image(path)


def png_of_claimed_size(side: int) -> bytes:
    """A header without pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_bad_file_does_not_end_the_list(tmp_path, monkeypatch, capsys):
    bad, text, good = (tmp_path / name for name in ("huge.png", "text.png", "good.png"))
    bad.write_bytes(png_of_claimed_size(60_000))
    text.write_text("no image")
    cv2.imwrite(str(good), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "detector.json").write_text(json.dumps({"format": "stablehlo"}))
    monkeypatch.setattr(run_exported, "detect", lambda *_: [("cell", 0.5, [0.0, 1.0, 2.0, 3.0])])
    monkeypatch.setattr(sys, "argv", ["program", str(tmp_path), str(bad), str(text), str(good)])
    assert run_exported.main() == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["file"] == str(good)
    lines = printed.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(bad), str(text)], lines


def test_sizes_are_those_of_the_package():
    for height in range(1, 700, 7):
        for width in (1, 90, 200, 321, 494, 640):
            here = run_exported.resized_size(height, width, 240, 320)
            assert here == resized_size((height, width), 240, 320), (height, width)
