"""YOLO sets: `data.yaml`, image folders, and one text file of labels for each image.

A line is a class and shares of the image's sides: a box (x and y of its centre, width, height) or a
polygon, of which the box is taken. An image without a label file has no objects.
"""

import math
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from atss_jax.data.content import ALL, Content
from atss_jax.data.health import Finding
from atss_jax.data.media_files import IMAGE_SUFFIXES, is_hidden
from atss_jax.data.splits import Layout, SplitSource, files_of
from atss_jax.errors import UserError


def read_yaml(path: str) -> dict[str, Any]:
    """A data.yaml, with its class names as a dictionary by number.

    Raises:
      UserError: not YAML, or without names.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]}).") from None
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(n) is int for n in names):
        raise UserError(
            f"{path}: no names of classes. Write them as a list, in the order of the numbers in "
            'the label files: names: ["cat", "dog"].'
        )
    count = values.get("nc", len(names))
    if count != len(names):
        raise UserError(f"{path}: nc is {count}, and there are {len(names)} names. Correct one.")
    return {**values, "names": {n: str(name) for n, name in names.items()}}


def find_places(path: str, values: dict[str, Any], split: str) -> list[str]:
    """The image folders, or lists of images, of a split; [] where the file names none.

    Paths are relative to the file's `path`, or to the file. Where one is not there, its last parts
    are looked for beside the file: Roboflow writes "../train/images" for "train/images", and others
    the paths of the machine that wrote them.

    Raises:
      UserError: nothing there.
    """
    given = values.get(split) or []
    here = Path(path).resolve().parent
    found = []
    for place in [given] if isinstance(given, str) else given:
        base = here / str(values.get("path") or "")
        parts = [p for p in PurePosixPath(str(place).replace("\\", "/")).parts if p != ".."]
        tails = [here.joinpath(*parts[k:]) for k in range(len(parts)) if parts[k] != "/"]
        options = [base / str(place), here / str(place), *tails]
        there = next((option for option in options if option.exists()), None)
        if there is None:
            raise UserError(
                f"{path}: {split}: {place!r} is not there. Looked for "
                f"{', '.join(map(str, dict.fromkeys(options)))}."
            )
        found.append(os.path.normpath(there))
    return found


def _images_of(place: str) -> list[str]:
    """Image files below a folder without hidden ones, or those of a list."""
    if os.path.isdir(place):
        found = []
        for root, inner, files in os.walk(place):
            inner[:] = [name for name in inner if not is_hidden(name)]
            names = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
            found += [os.path.join(root, name) for name in names if not is_hidden(name)]
        return found
    lines = Path(place).read_text(encoding="utf-8-sig").splitlines()
    parent = os.path.dirname(place)
    return [os.path.normpath(os.path.join(parent, line.strip())) for line in lines if line.strip()]


def label_path(image: str) -> str:
    """The label file of an image: the last "images" of its path is "labels" there.

    >>> label_path("/a/images/train/1.jpg"), label_path("/a/b/1.jpg")
    ('/a/labels/train/1.txt', '/a/b/1.txt')
    """
    folder, file = os.path.split(image)
    parts = folder.split("/")
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return "/".join([*parts, os.path.splitext(file)[0] + ".txt"])


def read(source: SplitSource) -> Content:
    """A split of a YOLO set; images have the names that they have below their common folder.

    Args:
      source: as `find` gives it.

    Raises:
      UserError: the file is wrong, or the split has no image or no label file.
    """
    path, split = source.annotations, source.names
    values = read_yaml(path)
    places = find_places(path, values, split)
    files = sorted({file for place in places for file in _images_of(place)})
    if not files:
        raise UserError(f"{path}: {split}: no image in {', '.join(places)}.")
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    points = values.get("kpt_shape")
    num_extra = math.prod(points) if isinstance(points, list) else 0
    images, annotations, bad = [], [], []
    num_labels = 0
    for file in files:
        name = os.path.relpath(file, folder)
        images.append({"id": name, "file_name": name})
        labels = label_path(file)
        try:
            lines = Path(labels).read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            bad.append(Finding("label_file", f"{labels}: {error}", name))
            continue
        num_labels += 1
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                class_id, box = _parse(line, num_extra)
            except ValueError as error:
                bad.append(Finding("label_line", f"{labels}, line {n}: {error}", name))
                continue
            about = f"{os.path.basename(labels)}:{n} of {name}"
            fields = {"id": about, "image_id": name, "category_id": class_id, "bbox": box}
            annotations.append({**fields, "area": None})
    if not num_labels:
        raise UserError(
            f"{path}: {split}: {len(files)} images and no label file, such as "
            f"{label_path(files[0])}. Label files are beside the images, or in a folder 'labels' "
            "beside 'images'."
        )
    categories = [{"id": n, "name": name} for n, name in values["names"].items()]
    return Content(
        path, folder, images, annotations, categories, is_relative=True, bad_annotations=bad
    )


def _parse(line: str, num_extra: int) -> tuple[int, list[float]]:
    """(class, [x, y, w, h]) of a label line, in shares.

    Raises:
      ValueError: neither a box nor a polygon.
    """
    try:
        number, *values = (float(word) for word in line.split())
        class_id = int(number)
    except (ValueError, OverflowError):
        raise ValueError(f"{line.strip()[:60]!r} is not numbers") from None
    if class_id != number or not all(map(math.isfinite, values)):
        raise ValueError(f"{line.strip()[:60]!r}: not a class number and finite coordinates")
    if len(values) == 4 + num_extra:
        x, y, w, h = values[:4]
        return class_id, [x - w / 2, y - h / 2, w, h]
    if num_extra or len(values) < 6 or len(values) % 2:
        raise ValueError(
            f"{len(values)} coordinates: a box has 4 (x and y of the centre, width, height), a "
            "polygon two for each corner"
        )
    xs, ys = values[::2], values[1::2]
    return class_id, [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def find(root: str, val_fraction: float) -> Layout | None:
    """The set of a folder's data.yaml.

    Args:
      root: the folder, or the YAML file.
      val_fraction: share of the images that validate where there is one list for all.

    Raises:
      UserError: several such files, or label files without one.
    """
    if os.path.isfile(root):
        is_yaml = root.lower().endswith((".yaml", ".yml"))
        return _layout(root, val_fraction) if is_yaml else None
    paths = [Path(root, name) for name in files_of(root, ".yaml", ".yml")]
    own = [p for p in paths if re.search(rb"^names\s*:", p.read_bytes(), re.M)]
    if len(own) > 1:
        raise UserError(f"several YOLO sets: {', '.join(map(str, own))}. Give one of the files.")
    if own:
        return _layout(str(own[0]), val_fraction)
    labels = Path(root, "labels").glob("**/*.txt")
    if any(not is_hidden(path.name) for path in labels):
        raise UserError(
            "label files in labels/ and no data.yaml. Write one with the names of the classes and "
            "the image folders, such as:\n  names: [cat, dog]\n  train: images/train\n"
            "  val: images/val"
        )
    return None


def _layout(path: str, val_fraction: float) -> Layout:
    values = read_yaml(path)
    train = find_places(path, values, "train")
    if not train:
        raise UserError(f"{path}: no train. Name the folder of the training images there.")
    key = next((k for k in ("val", "valid", "validation", "test") if values.get(k)), "train")
    val = find_places(path, values, key)
    is_split = key == "train" or val == train
    return Layout(
        "YOLO",
        SplitSource(
            *("yolo", path, ", ".join(train), "train"),
            share=(val_fraction, 1.0) if is_split else ALL,
        ),
        SplitSource(
            *("yolo", path, ", ".join(val), key), share=(0.0, val_fraction) if is_split else ALL
        ),
    )
