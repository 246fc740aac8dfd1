"""Folders as people have them: rare classes, few images, odd names, other programs' files."""

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from atss_jax.data import media_files
from atss_jax.data.config import DataConfig
from atss_jax.data.content import share_of
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.layouts import find_layout
from atss_jax.data.sources import load_split
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import coco_metrics, known_or_none
from atss_jax.run import build, check_data
from atss_jax.run.recipe import Recipe
from tests.test_layouts import FRACTION, IMAGES, WRITERS, load, metrics, write_images

BOX = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>60</xmax><ymax>50</ymax></bndbox>"


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path.name)) + ord(path.stem[-1]))
    done, data = cv2.imencode(".png", rng.integers(0, 256, (72, 96, 3), np.uint8))
    assert done
    path.write_bytes(data.tobytes())


def write_xml(path: Path, image: str, *names: str, box: str = BOX) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
    path.write_text(
        f"<annotation><filename>{image}</filename><size><width>96</width><height>72</height></size>"
        f"{objects}</annotation>"
    )


def write_voc_parts(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """train/ and valid/ with one image for each of the names, which has an object of it."""
    for part, names in (("train", train), ("valid", val)):
        for n, name in enumerate(names):
            write_image(root / part / f"{part}{n}.png")
            write_xml(root / part / f"{part}{n}.xml", f"{part}{n}.png", name)


def write_voc_flat(root: Path, *stems: str) -> None:
    for stem in stems:
        write_image(root / f"{stem}.png")
        write_xml(root / f"{stem}.xml", f"{stem}.png", "cat")


def write_yolo_list(root: Path, count: int) -> None:
    for n in range(count):
        write_image(root / "images" / f"a{n}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"a{n}.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images\n")


def names_of(dataset: DetectionDataset) -> set[str]:
    return {dataset.file_name(n) for n in range(dataset.num_records)}


def both(root: Path, **fields) -> tuple[DetectionDataset, DetectionDataset]:
    config = DataConfig(root=str(root), **fields)
    return load_split(config, "train"), load_split(config, "val")


def test_classes_of_voc_are_those_of_both_folders(tmp_path):
    """A class that one part lacks is trained, and counts in no mean where none is to be found."""
    write_voc_parts(tmp_path, ("cat", "dog", "cat"), ("cat", "bird"))
    train, val = both(tmp_path)
    assert train.class_names == val.class_names == ("bird", "cat", "dog")
    assert train.category_ids == val.category_ids
    assert train.class_counts().tolist() == [0, 2, 1]
    assert val.class_counts().tolist() == [1, 1, 0]
    train, val = build.load_sets(Recipe(data=DataConfig(root=str(tmp_path))))
    found = metrics(val)
    assert known_or_none(found)["AP/dog"] is None
    assert found["AP"] == (found["AP/bird"] + found["AP/cat"]) / 2 > 0
    lines = "\n".join(check_data.val_lines(train, val))
    assert "! in val and never in train: bird" in lines
    assert "in train and never in val, so without an AP: dog" in lines
    assert "the same classes" not in lines


def test_whether_voc_counts_from_one_is_decided_for_both_folders(tmp_path):
    write_voc_parts(tmp_path, ("cat",), ("cat",))
    assert both(tmp_path)[1].annotations.xywh.tolist() == [[10, 10, 50, 40]]
    box = BOX.replace(">11<", ">10.5<")
    write_xml(tmp_path / "train/train0.xml", "train0.png", "cat", box=box)
    assert both(tmp_path)[1].annotations.xywh.tolist() == [[11, 11, 49, 39]]


@pytest.mark.parametrize("column", ["", " 1", "  -1", "\t0"])
def test_names_in_voc_lists_may_hold_spaces(tmp_path, column):
    stems = ("my photo 1", "my photo b", "b", "c 7")
    for stem in stems:
        write_image(tmp_path / "JPEGImages" / f"{stem}.png")
        write_xml(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.png", "cat")
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    text = "".join(f"{stem}{column}\n" for stem in stems[:3])
    (lists / "train.txt").write_text(f"{text}\n")
    (lists / "val.txt").write_text(f"c 7{column}\n")
    train, val = both(tmp_path)
    assert names_of(train) == {f"{stem}.png" for stem in stems[:3]}
    assert names_of(val) == {"c 7.png"}


def test_voc_with_suffixes_in_upper_case(tmp_path):
    for n in range(4):
        write_image(tmp_path / f"IMG_{n}.PNG")
        write_xml(tmp_path / f"IMG_{n}.XML", f"IMG_{n}.PNG", "cat")
    train, val = both(tmp_path)
    assert train.num_records + val.num_records == 4
    (tmp_path / "IMG_0.XML").write_text("<annotation>")
    with pytest.raises(UserError, match=r"IMG_0\.XML: not an XML file"):
        both(tmp_path)


@pytest.mark.parametrize("empty", ["", "images", "JPEGImages"])
def test_voc_images_beside_their_annotations_folder(tmp_path, empty):
    write_voc_flat(tmp_path, "a", "b", "c")
    (tmp_path / "annotations").mkdir()
    for path in tmp_path.glob("*.xml"):
        path.rename(tmp_path / "annotations" / path.name)
    (tmp_path / empty).mkdir(exist_ok=True)
    assert find_layout(tmp_path).train.images == str(tmp_path)
    assert sum(dataset.num_records for dataset in both(tmp_path)) == 3


def test_errors_of_xml_files_are_shown_where_none_has_an_object(tmp_path):
    for n in range(7):
        write_image(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.xml").write_text("<annotation>")
    write_xml(tmp_path / "0.xml", "0.png", "cat", box="")
    (tmp_path / "1.xml").write_text('<?xml version="1.0" encoding="what"?><annotation/>')
    with pytest.raises(UserError, match="none of its 7 XML files has an object") as error:
        both(tmp_path)
    lines = str(error.value).splitlines()
    assert "0.xml: object 1: bndbox" in lines[1] and "unknown encoding" in lines[2]
    assert "2.xml: not an XML file" in lines[3] and lines[-1] == "  and 2 more"
    for n in range(7):
        write_xml(tmp_path / f"{n}.xml", f"{n}.png")
    with pytest.raises(UserError, match=r"\(a name, and a bndbox with xmin, .*\)\.$"):
        both(tmp_path)


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.2, 0.5, 0.99, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_part_gets_an_image(tmp_path, count, fraction):
    """The one whose hash is nearest to the border, where the hashes leave a part empty."""
    write_yolo_list(tmp_path, count)
    train, val = (names_of(dataset) for dataset in both(tmp_path, val_fraction=fraction))
    ordered = sorted((f"a{n}.png" for n in range(count)), key=share_of)
    inside = sum(share_of(name) < fraction for name in ordered)
    border = min(max(inside, 1), count - 1)
    assert val == set(ordered[:border]) and train == set(ordered[border:])


def test_one_image_cannot_be_split(tmp_path):
    write_yolo_list(tmp_path, 1)
    for fraction in (0.01, 0.99):
        for split in ("train", "val"):
            with pytest.raises(UserError, match="one image cannot be split .* at least two images"):
                load_split(DataConfig(root=str(tmp_path), val_fraction=fraction), split)
    flat = tmp_path / "flat"  # an unreadable second one is the error to tell
    write_voc_flat(flat, "a", "b")
    (flat / "b.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"b\.xml: not an XML file"):
        both(flat)


JUNK = ("._a.{}", ".a.{}", ".ipynb_checkpoints/a.{}", "__MACOSX/a.{}", "__MACOSX/._a.{}")
"""As macOS and Jupyter leave them."""


@pytest.mark.parametrize("kind", WRITERS)
def test_hidden_files_are_no_data(tmp_path, kind):
    root = tmp_path / "set"
    root.mkdir()
    WRITERS[kind](root)
    expected = [names_of(load(root, split)) for split in ("train", "val")]
    whole = next(iter(root.rglob("*.json")), root / "data.yaml")
    page = next(iter(root.rglob("*.xml")), None)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in JUNK:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name.format("png")).write_bytes(b"\0\5\26\7")
            (folder / name.format("txt")).write_bytes(b"\0\5\26\7")
            for other in (whole, page):
                if other is not None and other.is_file():
                    shutil.copy(other, folder / name.format(other.suffix[1:]))
    assert find_layout(root, FRACTION).kind == kind
    assert [names_of(load(root, split)) for split in ("train", "val")] == expected


def test_hidden_xml_files_are_no_data(tmp_path):
    write_voc_flat(tmp_path, "a", "b")
    for name in JUNK:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name.format("xml")).write_bytes(b"\0\5\26\7")
    assert set.union(*map(names_of, both(tmp_path))) == {"a.png", "b.png"}
    for path in tmp_path.glob("[ab].xml"):
        path.unlink()
    with pytest.raises(UserError, match="no data set found there"):
        find_layout(tmp_path)


def test_hidden_files_are_not_predicted(tmp_path):
    write_images(tmp_path / ".mine" / "set", IMAGES[:2])  # hidden itself, and named
    for name in JUNK:
        (tmp_path / ".mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / ".mine" / name.format("png")).write_bytes(b"\0\5\26\7")
    found = media_files.find([str(tmp_path / ".mine")])
    assert [path.name for path in found.images] == list(IMAGES[:2])


def test_a_network_with_more_classes_than_the_set(tmp_path, caplog):
    """COCO files that list fewer: the missing ones come in the network's order, without boxes."""
    write_voc_parts(tmp_path, ("cat", "dog"), ("cat", "bird"))
    val = both(tmp_path)[1].with_classes(("cat", "bird"))
    with caplog.at_level(logging.WARNING):
        mapped = build.classes.in_order_of(val, ("ant", "bird", "cat", "dog"), "the network")
    assert [r.getMessage() for r in caplog.records] == [
        f"{val.name} lacks classes of the network: added without boxes, so without an AP: ant, dog"
    ]
    assert mapped.class_names == ("ant", "bird", "cat", "dog")
    assert len(set(mapped.category_ids)) == 4 and mapped.category_ids[1:3] == (1, 2)
    assert mapped.class_counts().tolist() == [0, 1, 1, 0]
    truth, ids = mapped.coco_ground_truth(), mapped.category_ids
    wrong = {"image_id": int(mapped.image_ids[0]), "category_id": ids[0], "bbox": [1, 1, 9, 9]}
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"]}
        for a in truth["annotations"]
    ]
    results = [{**result, "score": 0.5} for result in [*results, wrong]]
    found = coco_metrics(truth, results, class_names=mapped.class_names, category_ids=ids)
    assert [found[name] for name in ("AP", "AP/bird", "AP/cat")] == pytest.approx([1, 1, 1])
    assert found["AP/ant"] == found["AP/dog"] == -1
    assert mapped.inside_results(mapped.original_results(results)) == results
    for names in (("ant", "cat", "dog"), ("ant", "dog")):
        with pytest.raises(UserError, match="only in the second: .*'bird'.* name them alike"):
            build.classes.in_order_of(val, names, "the network")
