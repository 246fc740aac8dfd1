r"""Time, bytes and memory of opening a COCO-sized set, first and again.

    python scripts/bench_start.py --folder=/tmp/bench_start --photos=.../train2017

Writes a set with COCO's numbers (118,287 small images, 860,001 annotations) below --folder where it
is not there yet, and opens it in processes of their own: without an index, with it, and with
json.load and pycocotools for comparison. With --photos, 1,000 JPEG files of COCO's sizes are made
from the pictures of a folder, and opened likewise. CPU seconds are user and system time of the
process, its imports left out; peak memory is the process's, imports included. The last line is
JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NUM_IMAGES, NUM_ANNOTATIONS, NUM_CLASSES = 118_287, 860_001, 80
SIZE = (48, 64)
"""(h, w) of every image, px."""
NUM_PHOTOS = 1000
PHOTO_SIZES = ((480, 640), (427, 640), (640, 480), (640, 427), (375, 500), (500, 375))
"""The commonest (h, w) of COCO, px."""


def write_set(folder: Path, num_images: int, num_annotations: int) -> None:
    """Image files by the thousand in a folder, and the JSON file last."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
        encoded.append(cv2.imencode(".jpg", pixels)[1].tobytes())
    images = []
    for n in range(num_images):
        name = f"{n // 1000:03d}/{n:012d}.jpg"
        if n % 1000 == 0:
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        data = encoded[n % len(encoded)]  # a comment behind the end makes each file its own
        (folder / "images" / name).write_bytes(data + str(n).encode())
        images.append({"id": n + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    write_annotations(folder, images, num_annotations)


def write_photos(folder: Path, pictures: str, num_images: int) -> None:
    """JPEG files of COCO's sizes from the pictures of a folder, each mirrored or resized anew."""
    found = sorted(p for p in Path(pictures).rglob("*.jpg") if p.is_file())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = []
    for n in range(num_images):
        picture = cv2.imread(str(found[n % len(found)]))
        if picture is None:
            raise ValueError(f"{found[n % len(found)]}: OpenCV does not decode it.")
        height, width = PHOTO_SIZES[n % len(PHOTO_SIZES)]
        picture = cv2.resize(cv2.flip(picture, n % 3 - 1), (width, height))
        quality = 88 + n // len(found) % 10
        name = f"{n:012d}.jpg"
        cv2.imwrite(str(folder / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        images.append({"id": n + 1, "file_name": name, "height": height, "width": width})
    write_annotations(folder, images, num_images * NUM_ANNOTATIONS // NUM_IMAGES)


def write_annotations(folder: Path, images: list[dict], count: int) -> None:
    """Boxes of 2 to 20 px at random places, and the file of all."""
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(0, len(images), count))
    sizes = np.array([[image["width"], image["height"]] for image in images])[owners]
    sides = rng.uniform(2, 20, (count, 2)).round(2)
    corners = (rng.uniform(0, 1, (count, 2)) * (sizes - sides)).round(2)
    classes = rng.integers(1, NUM_CLASSES + 1, count).tolist()
    boxes = np.concatenate([corners, sides], axis=1).tolist()
    annotations = [
        {
            "id": n + 1,
            "image_id": images[owner]["id"],
            "category_id": classes[n],
            "bbox": boxes[n],
            "area": boxes[n][2] * boxes[n][3],
            "iscrowd": 0,
        }
        for n, owner in enumerate(owners.tolist())
    ]
    categories = [{"id": n + 1, "name": f"class {n + 1}"} for n in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_bytes() -> int:
    """Bytes that this process has read, from disk or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].split()[1])


def open_set(folder: Path, index: str) -> None:
    """One start, in this process; prints what it took."""
    from atss_jax.data.config import DataConfig
    from atss_jax.data.sources import load_split

    config = DataConfig(
        name="bench",
        train_annotations=str(folder / "annotations.json"),
        train_images=str(folder / "images"),
        index_folder=index,
    )
    cpu, wall, before = cpu_seconds(), time.perf_counter(), read_bytes()
    dataset = load_split(config, "train")
    print_result(cpu, wall, before, dataset.num_records, folder)


def open_with_pycocotools(folder: Path) -> None:
    """json.load and the index of pycocotools, for comparison: no image file is looked at."""
    from pycocotools.coco import COCO

    cpu, wall, before = cpu_seconds(), time.perf_counter(), read_bytes()
    coco = COCO(str(folder / "annotations.json"))
    print_result(cpu, wall, before, len(coco.imgs), folder)


def print_result(cpu: float, wall: float, before: int, count: int, folder: Path) -> None:
    """The last line that `start` reads."""
    of_images = read_bytes() - before - (folder / "annotations.json").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "cpu_s": round(cpu_seconds() - cpu, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
        "bytes_per_image": round(of_images / count),
        "peak_rss_mb": round(peak),
    }
    print(json.dumps(result))


def start(what: str, folder: Path) -> dict[str, float]:
    """One start in a process of its own."""
    command = [sys.executable, __file__, f"--folder={folder}", f"--only={what}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    print(f"{what}: {result}", flush=True)
    return result


def measure(what: str, folder: Path) -> dict[str, float]:
    """A first and a second start, and pycocotools."""
    print(f"{what}:")
    for old in (folder / "index").glob("*"):
        os.unlink(old)
    first, second = start("first", folder), start("second", folder)
    other = start("pycocotools", folder)
    return {
        "first_cpu_s": first["cpu_s"],
        "second_cpu_s": second["cpu_s"],
        "bytes_per_image": first["bytes_per_image"],
        "peak_rss_mb": max(first["peak_rss_mb"], second["peak_rss_mb"]),
        "pycocotools_cpu_s": other["cpu_s"],
        "pycocotools_peak_rss_mb": other["peak_rss_mb"],
    }


def main() -> None:
    """Writes the sets, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True, help="where the sets are, or are written")
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--annotations", type=int, default=NUM_ANNOTATIONS)
    parser.add_argument("--photos", default="", help="folder of JPEG files to make photos from")
    parser.add_argument("--num_photos", type=int, default=NUM_PHOTOS)
    parser.add_argument("--only", default="", help="first, second or pycocotools: used by itself")
    args = parser.parse_args()
    folder = Path(args.folder)
    if args.only == "pycocotools":
        return open_with_pycocotools(folder)
    if args.only:
        return open_set(folder, str(folder / "index"))
    if not (folder / "annotations.json").exists():
        write_set(folder, args.images, args.annotations)
    summary: dict[str, Any] = dict(measure("small images of COCO's numbers", folder))
    if args.photos:
        photos = folder / "photos"
        if not (photos / "annotations.json").exists():
            write_photos(photos, args.photos, args.num_photos)
        summary["photos"] = measure("photos", photos)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
