r"""Damaged images and annotation files by the thousand: each is read, or clearly refused.

    python scripts/fuzz_data.py --images=20000 --files=2000

Images of eight formats have bytes flipped, zeroed, cut out, copied and appended and lengths
changed, with the first bytes left whole in most, so that the decoders are reached. They are opened
as a training set is (data.on_error="skip", every file decoded). Annotation files have values of
other types, keys removed, huge numbers, NaN, nesting, ids twice and wrong encodings; what is still
read goes through the start report and the ground truth of the evaluation. Every program that the
process starts is counted by an audit hook. The last line is JSON; the exit status is 1 where an
error was not one for users, or a program was started.
"""

import argparse
import copy
import io
import json
import logging
import os
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.data.plausibility import start_report
from atss_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MAX_PIXELS = 20_000_000
"""data.max_pixels of the run: damaged headers claim any size."""
FILES_AT_ONCE = 250
PROGRAM_EVENTS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system")
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "3",
        "a.png",
        "\0",
        "\ud800",
        "../x",
        "/",
        ".",
    ),
    *("x" * 10_000, "0.png", [], {}, [[]], [1, 2, 3], [0, 0, 1, 1], {"id": 3}, [None] * 4),
)
"""What any value of an annotation file is replaced by."""


class Tally:
    """What happened."""

    def __init__(self):
        self.outcomes: Counter[str] = Counter()
        self.unhandled: list[str] = []
        self.programs: list[str] = []

    def watch_programs(self) -> None:
        """Counts every program started from now on."""

        def hook(event: str, args: tuple) -> None:
            if event in PROGRAM_EVENTS or event == "subprocess.Popen":
                self.programs.append(f"{event}{args[:2]}")

        sys.addaudithook(hook)

    def failed(self, about: str) -> None:
        """Notes an error that is not one for users."""
        self.unhandled.append(f"{about}\n{traceback.format_exc()}")


def pictures(kind: str, rng: np.random.Generator) -> list[bytes]:
    """Encoded images of a format: colour, gray, smooth, and its other forms."""
    noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
    smooth = np.linspace(0, 255, 48 * 40 * 3).astype(np.uint8).reshape(48, 40, 3)
    colour, gray = Image.fromarray(noise), Image.fromarray(smooth[..., 0])
    exif = Image.Exif()
    exif[274] = 6
    forms: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [(colour, {"progressive": True}), (colour, {"exif": exif})],
        "PNG": [(colour.convert("P"), {}), (gray.convert("1"), {}), (gray.convert("I;16"), {})],
        "WEBP": [(colour, {"lossless": True}), (colour.convert("RGBA"), {"exif": exif})],
        "BMP": [(gray.convert("1"), {}), (colour.convert("P"), {})],
        "TIFF": [(gray.convert("F"), {}), (colour, {"compression": "tiff_lzw"})]
        + [(gray.convert("1"), {"compression": "group4"}), (colour, {"compression": "jpeg"})],
        "GIF": [(colour, {"save_all": True, "append_images": [colour.rotate(90)]})],
        "PPM": [(gray.convert("1"), {}), (gray, {})],
        "AVIF": [(gray, {}), (colour, {"exif": exif})],
    }
    encoded = []
    for image, keywords in [(colour, {}), (Image.fromarray(smooth), {}), *forms[kind]]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **keywords)
        encoded.append(buffer.getvalue())
    return encoded


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes of a file; the first bytes stay in two thirds of the cases."""
    found = bytearray(data)
    start = int(rng.choice([0, 12, min(64, len(found) // 2)]))
    for _ in range(int(rng.integers(1, 9))):
        if len(found) <= start + 8:
            break
        place = int(rng.integers(start, len(found) - 4))
        length = int(rng.integers(1, 1 + min(64, len(found) - place)))
        change = rng.integers(8)
        if change == 0:
            found[place] ^= 1 << int(rng.integers(8))
        elif change == 1:
            found[place] = int(rng.integers(256))
        elif change == 2:
            found[place : place + length] = bytes(length)
        elif change == 3:  # a length or an offset
            value = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            found[place : place + 4] = value.to_bytes(4, str(rng.choice(["big", "little"])))  # type: ignore[arg-type]
        elif change == 4:
            del found[place : place + length]
        elif change == 5:
            found[place:place] = found[place : place + length]
        elif change == 6:
            found += rng.bytes(length)
        elif rng.random() < 0.3:
            del found[place:]
    return bytes(found)


def fuzz_images(count: int, folder: Path, tally: Tally, seed: int) -> None:
    """Sets of damaged images of one format each."""
    for place, kind in enumerate(FORMATS):
        rng = np.random.default_rng((seed, place))
        originals = pictures(kind, rng)
        left = count // len(FORMATS)
        while left > 0:
            number, left = min(left, FILES_AT_ONCE), left - FILES_AT_ONCE
            for n in range(number):
                original = originals[int(rng.integers(len(originals)))]
                (folder / f"{n}.img").write_bytes(damage(original, rng))
            images = [{"id": n, "file_name": f"{n}.img"} for n in range(number)]
            open_images(images, folder, kind, tally)
        print(f"{kind}: {dict(tally.outcomes)}", flush=True)


def open_images(images: list[dict], folder: Path, kind: str, tally: Tally) -> None:
    """Opens a set; an unexpected error is narrowed down to one of its images."""
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (folder / "a.json").write_text(json.dumps(content))
    config = DataConfig(on_error="skip", max_bad_fraction=1.0, max_pixels=MAX_PIXELS)
    try:
        found = load_coco(str(folder / "a.json"), str(folder), name=kind, config=config)
        tally.outcomes["image read"] += found.num_records
        tally.outcomes["image refused"] += found.health.bad_images
    except UserError:  # not one is left
        tally.outcomes["image refused"] += len(images)
    except Exception:
        if len(images) > 1:
            for image in images:
                open_images([image], folder, kind, tally)
            return
        data = (folder / images[0]["file_name"]).read_bytes()
        tally.failed(f"{kind} of {len(data)} bytes: {data[:64].hex()}...")


def good_content() -> dict[str, Any]:
    """A small set that is right."""
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": f"{n}.png", "height": 24, "width": 32} for n in range(4)],
        "annotations": [
            {
                "id": n,
                "image_id": n % 4,
                "category_id": 1 + n % 2,
                "bbox": [1.5 * n, n, 9.25, 8],
                "area": 74.0,
                "iscrowd": int(n == 5),
                "segmentation": [[1, 1, 5, 5, 1, 5]],
            }
            for n in range(8)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def change_value(content: Any, rng: np.random.Generator) -> Any:
    """Replaces, removes, doubles or wraps one value somewhere in a JSON document."""
    parent: Any = None
    key: Any = None
    value = content
    while isinstance(value, dict | list) and value and (parent is None or rng.random() < 0.8):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        parent, key = value, keys[int(rng.integers(len(keys)))]
        value = value[key]
    new = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    if parent is None:
        return new
    change = rng.integers(5)
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(value))
    elif change == 2:
        parent[key] = [value]
    else:
        parent[key] = new
    return content


def damaged_json(rng: np.random.Generator) -> bytes:
    """The bytes of a changed annotation file."""
    content: Any = good_content()
    for _ in range(int(rng.integers(1, 5))):
        content = change_value(content, rng)
    text = json.dumps(content)
    change = rng.integers(12)
    if change == 0:
        return damage(text.encode(), rng)
    if change == 1:
        return text.encode(str(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"])))
    if change == 2:
        return text[: int(rng.integers(len(text)))].encode()
    if change == 3:
        depth = int(rng.choice([10, 500, 100_000]))
        return text.replace('"year": 2017', '"year": ' + "[" * depth + "]" * depth).encode()
    if change == 4:
        return text.replace("2017", str(rng.choice(["9" * 5000, "1e999", "0x1", "tru"]))).encode()
    if change == 5:
        return text.replace('"id"', str(rng.choice(['"ID"', '"id ":1,"id"', "id"]))).encode()
    return text.encode()


def fuzz_files(count: int, folder: Path, tally: Tally, seed: int) -> None:
    """Damaged annotation files of four whole images."""
    for n in range(4):
        Image.new("RGB", (32, 24), (60 * n, 90, 30)).save(folder / f"{n}.png")
    for n in range(count):
        data = damaged_json(np.random.default_rng((seed, 99, n)))
        (folder / "a.json").write_bytes(data)
        for policy in ("strict", "skip"):
            config = DataConfig(on_error=policy, max_bad_fraction=1.0, max_pixels=MAX_PIXELS)  # type: ignore[arg-type]
            try:
                found = load_coco(str(folder / "a.json"), str(folder), name="set", config=config)
                start_report(found, found, padding=0.1, max_detections=100)
                json.dumps(found.coco_ground_truth())
                tally.outcomes[f"file read, {policy}"] += 1
            except UserError as error:
                if "a.json" not in str(error) and str(folder) not in str(error):
                    tally.failed(f"file {n}, {policy}: the message names no file")
                tally.outcomes[f"file refused, {policy}"] += 1
            except Exception:
                tally.failed(f"file {n} of seed {seed}, {policy}: {data[:500]!r}")


def main() -> None:
    """Damages, opens, counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tally = Tally()
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tally.watch_programs()
            fuzz_images(args.images, Path(folder), tally, args.seed)
            fuzz_files(args.files, Path(folder), tally, args.seed)
    finally:
        logging.disable(logging.NOTSET)
    for text in tally.unhandled[:10]:
        print(text, file=sys.stderr)
    summary = {
        **tally.outcomes,
        "unhandled": len(tally.unhandled),
        "programs": len(tally.programs),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(summary))
    if tally.unhandled or tally.programs:
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    main()
