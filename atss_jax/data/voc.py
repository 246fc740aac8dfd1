"""Pascal VOC sets: one XML file for each image, lists of names in `ImageSets/Main`.

Coordinates count pixels from 1, and both ends belong to the box, as Pascal VOC defines them; in a
set that has fractions or values below 1 they are continuous, from 0. "difficult" objects are
treated as COCO's crowds: neither trained on nor counted as missed. No file lists the classes: they
are the names in the XML files of all splits.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from atss_jax.data.content import Content
from atss_jax.data.health import Finding
from atss_jax.data.media_files import IMAGE_SUFFIXES
from atss_jax.data.splits import Layout, SplitSource, files_of, folders
from atss_jax.errors import UserError

MAX_ERRORS = 5
"""So many errors of XML files are shown where none has an object."""


class _Object(NamedTuple):
    """An object of an XML file."""

    name: str
    corners: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as written."""
    is_difficult: bool


class _Page(NamedTuple):
    """An XML file."""

    path: str
    file_name: str
    size: tuple[int, int] | None
    """(h, w)."""
    objects: list[_Object]
    errors: list[str]


def read(source: SplitSource) -> Content:
    """A split of a Pascal VOC set.

    Args:
      source: as `find` gives it: folder of XML files, folder of images, and the file with the name
        of one image per line, "" for all XML files.

    Raises:
      UserError: a list that is empty, no XML file, or no object in any.
    """
    annotations, images, names = source.annotations, source.images, source.names
    pages = _read_pages(annotations)
    if not pages:
        raise UserError(f"{annotations}: no XML file there.")
    others = _read_pages(source.other_annotations) if source.other_annotations else {}
    every = [*pages.values(), *others.values()]
    objects = [o for page in every if isinstance(page, _Page) for o in page.objects]
    if not objects:
        raise UserError(_nothing_message(annotations, pages))
    is_continuous = any(min(o.corners) < 1 or any(v % 1 for v in o.corners) for o in objects)
    id_of = {name: n for n, name in enumerate(sorted({o.name for o in objects}), 1)}
    wanted = _read_names(names, pages) if names else list(pages)
    files = defaultdict(list)
    for file in files_of(images, *IMAGE_SUFFIXES):
        files[os.path.splitext(file)[0]].append(file)
    entries, boxes, bad, bad_images = [], [], [], []
    for stem in wanted:
        page = pages.get(stem, f"{annotations}/{stem}.xml: no such file")
        if isinstance(page, str):
            bad_images.append(Finding("image_xml", page, stem))
            continue
        options = files.get(stem) or [page.file_name or f"{stem}.jpg"]
        name = page.file_name if page.file_name in options else options[0]
        height, width = page.size or (None, None)
        entries.append({"id": name, "file_name": name, "height": height, "width": width})
        bad += [Finding("object_xml", f"{page.path}: {error}", name) for error in page.errors]
        for n, (kind, corners, is_difficult) in enumerate(page.objects, 1):
            x1, y1, x2, y2 = corners
            box = [x1, y1, x2 - x1, y2 - y1]
            if not is_continuous:
                box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            boxes.append(
                {
                    "id": f"{stem}.xml:{n}",
                    "image_id": name,
                    "category_id": id_of[kind],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(is_difficult),
                }
            )
    difficult = sum(box["iscrowd"] for box in boxes)
    odd = [Finding("voc_continuous", "coordinates count from 0: fractions or values below 1")]
    odd = (
        odd * is_continuous
        + [Finding("voc_difficult", 'a "difficult" object is treated as a crowd')] * difficult
    )
    listed = [{"id": id_, "name": name} for name, id_ in id_of.items()]
    where = names or annotations
    return Content(
        where, images, entries, boxes, listed, bad_annotations=bad, bad_images=bad_images, odd=odd
    )


def _nothing_message(folder: str, pages: Mapping[str, _Page | str]) -> str:
    """What is wrong with XML files none of which has an object; names the first of them."""
    errors = []
    for page in pages.values():
        errors += [page] if isinstance(page, str) else [f"{page.path}: {e}" for e in page.errors]
    found = "".join(f"\n  {error}" for error in errors[:MAX_ERRORS])
    more = f"\n  and {len(errors) - MAX_ERRORS} more" if len(errors) > MAX_ERRORS else ""
    return (
        f"{folder}: none of its {len(pages)} XML files has an object (a name, and a bndbox with "
        f"xmin, ymin, xmax and ymax).{found}{more}"
    )


def _read_names(path: str, known: Collection[str]) -> list[str]:
    """Names of a list; the -1, 0 or 1 that lists of one class have behind a name is not read.

    Args:
      path: of the list.
      known: names that there are, which may hold spaces.
    """
    names = []
    for line in Path(path).read_text(encoding="utf-8-sig").splitlines():
        name = line.strip()
        words = name.rsplit(maxsplit=1)
        if len(words) == 2 and name not in known and words[1] in ("-1", "0", "1"):
            name = words[0]
        names += [name] if name else []
    if not names:
        raise UserError(f"{path}: the list is empty.")
    return list(dict.fromkeys(names))


def _read_pages(folder: str) -> dict[str, _Page | str]:
    """The XML files of a folder by their names without the suffix; an error for a bad one."""
    pages: dict[str, _Page | str] = {}
    for name in files_of(folder, ".xml"):
        path = Path(folder, name)
        try:
            pages[path.stem] = _read_page(path)
        except (ElementTree.ParseError, OSError, ValueError, LookupError, OverflowError) as error:
            pages[path.stem] = f"{path}: not an XML file ({error})"
    return pages


def _read_page(path: Path) -> _Page:
    root = ElementTree.parse(path).getroot()
    size = None
    height, width = (root.findtext(f"size/{side}") for side in ("height", "width"))
    if height and width and int(float(height)) > 0 and int(float(width)) > 0:
        size = (int(float(height)), int(float(width)))
    objects, errors = [], []
    for n, element in enumerate(root.iter("object"), 1):
        words = [element.findtext(f"bndbox/{c}") for c in ("xmin", "ymin", "xmax", "ymax")]
        name = (element.findtext("name") or "").strip()
        try:
            x1, y1, x2, y2 = (float(word or "") for word in words)
        except ValueError:
            errors.append(f"object {n}: bndbox {words} is not four numbers")
            continue
        if not name:
            errors.append(f"object {n}: no name")
            continue
        is_difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(name, (x1, y1, x2, y2), is_difficult))
    file_name = os.path.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    return _Page(str(path), file_name, size, objects, errors)


def find(root: str, val_fraction: float) -> Layout | None:
    """The set of a folder's XML files and lists.

    Args:
      root: the folder.
      val_fraction: share of the images that validate where there are no two lists.
    """
    if not os.path.isdir(root):
        return None
    there = {entry.name.lower(): entry.path for entry in folders(root)}
    for split in ("valid", "val", "test"):  # Roboflow's: pictures and XML files side by side
        train, val = there.get("train"), there.get(split)
        if train and val and _has_xml(train) and _has_xml(val):
            return Layout(
                "Pascal VOC",
                SplitSource("voc", train, train, other_annotations=val),
                SplitSource("voc", val, val, other_annotations=train),
            )
    pages = there.get("annotations", root)
    if not _has_xml(pages):
        return None
    places = [there.get("jpegimages"), there.get("images"), pages, root]
    places = [place for place in places if place]
    images = next((p for p in places if files_of(p, *IMAGE_SUFFIXES)), places[0])
    lists = os.path.join(there.get("imagesets", ""), "Main")
    names = {n: f"{lists}/{n}.txt" for n in ("train", "trainval", "val", "test")}
    names = {n: path for n, path in names.items() if os.path.isfile(path)}
    for first, second in (("train", "val"), ("trainval", "test"), ("train", "test")):
        if {first, second} <= names.keys():
            return Layout(
                "Pascal VOC",
                SplitSource("voc", pages, images, names[first]),
                SplitSource("voc", pages, images, names[second]),
            )
    one = next(iter(names.values()), "")
    return Layout(
        "Pascal VOC",
        SplitSource("voc", pages, images, one, (val_fraction, 1.0)),
        SplitSource("voc", pages, images, one, (0.0, val_fraction)),
    )


def _has_xml(folder: str) -> bool:
    return bool(files_of(folder, ".xml"))
