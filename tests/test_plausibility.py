"""The start report on the sets that people have: clean, and wrong in five common ways."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atss_jax.data.config import DataConfig
from atss_jax.data.health import Finding
from atss_jax.data.plausibility import COLUMNS, MAX_LINES, start_report
from atss_jax.data.sources import load_split
from atss_jax.errors import UserError
from atss_jax.run import build
from atss_jax.run.check_data import val_lines
from atss_jax.run.recipe import Recipe

Content = dict[str, list[dict]]


def make_content(seed: int, count: int = 40) -> Content:
    """Images of 96x72 px with one to three boxes of 12 to 40 px, the right half more often."""
    rng = np.random.default_rng(seed)
    content: Content = {"images": [], "annotations": []}
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate("ab")]
    for image_id in range(1, count + 1):
        name = f"{seed}_{image_id}.jpg"
        image = {"id": image_id, "file_name": name, "height": 72, "width": 96}
        content["images"].append(image)
        for _ in range(int(rng.integers(1, 4))):
            w, h = (int(v) for v in rng.integers(12, 40, 2))
            x, y = int(rng.integers(0, 96 - w)), int(rng.integers(0, 72 - h))
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                }
            )
    return content


def write(root: Path, contents: dict[str, Content], orientation: int = 1) -> Path:
    for split, content in contents.items():
        (root / split).mkdir(parents=True)
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in content["images"]:
            rng = np.random.default_rng(int(image["file_name"].split("_")[0]) * 999 + image["id"])
            exif = Image.Exif()
            exif[274] = orientation
            pixels = rng.integers(0, 256, (72, 96, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / image["file_name"], exif=exif)
    return root


def report(root: Path) -> list[str]:
    sets = build.load_sets(Recipe(data=DataConfig(root=str(root))))
    lines = start_report(*sets, padding=0.1)
    assert len(lines) <= MAX_LINES and max(map(len, lines)) <= COLUMNS
    return joined(lines)


def joined(lines: list[str]) -> list[str]:
    """The entries, each in one line."""
    return "\n".join(lines).replace("\n    ", " ").split("\n")


def change_boxes(change: Callable[[list], list]) -> dict[str, Content]:
    contents = {"train": make_content(1), "valid": make_content(2, 12)}
    for content in contents.values():
        for entry in content["annotations"]:
            entry["bbox"] = change(entry["bbox"])
    return contents


def make_clean(root: Path) -> Path:
    return write(root, change_boxes(list))


def make_corners(root: Path) -> Path:
    return write(root, change_boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]))


def make_normalised(root: Path) -> Path:
    return write(root, change_boxes(lambda b: [b[0] / 96, b[1] / 72, b[2] / 96, b[3] / 72]))


def make_with_root_category(root: Path) -> Path:
    contents = change_boxes(list)
    for content in contents.values():
        content["categories"].insert(0, {"id": 0, "name": "things-a1b2"})
    return write(root, contents)


def make_turned(root: Path) -> Path:
    return write(root, change_boxes(list), orientation=6)


def make_shared(root: Path) -> Path:
    contents = change_boxes(list)
    contents["valid"]["images"] += [
        image | {"id": image["id"] + 100} for image in contents["train"]["images"][:5]
    ]
    write(root, contents)
    for image in contents["train"]["images"][:5]:
        (root / "valid" / image["file_name"]).write_bytes(
            (root / "train" / image["file_name"]).read_bytes()
        )
    return root


SETS = {
    "a clean set": make_clean,
    "x1, y1, x2, y2 for x, y, w, h": make_corners,
    "Roboflow's unused root category": make_with_root_category,
    "EXIF-turned images": make_turned,
    "files in both parts": make_shared,
}


@pytest.mark.parametrize("kind", SETS)
def test_the_report_names_what_is_wrong(tmp_path, kind):
    lines = report(SETS[kind](tmp_path / "set"))
    text = "\n".join(lines)
    assert "set/train: 40 images, " in lines[0] and "set/val: " in lines[1]
    assert "96x72 px" in lines[0] and "padding: 10.0 % extra pixels" in text
    told = {
        "x1, y1, x2, y2 for x, y, w, h": "! odd, kept: 1 + 1 boxes_as_corners",
        "Roboflow's unused root category": "left out, no box in train or val has the class: th",
        "EXIF-turned images": "! odd, kept: 40 + 12 image_turned",
        "files in both parts": "! 5 of 17 val images are in train",
    }
    for wrong, words in told.items():
        assert (words in text) == (wrong == kind), (wrong, text)
    if kind == "a clean set":
        assert "!" not in text
    assert "category_without_boxes" not in text


def test_normalised_boxes_are_refused(tmp_path):
    root = make_normalised(tmp_path / "set")
    with pytest.raises(UserError, match="every bbox lies within 0..1"):
        load_split(DataConfig(root=str(root)), "train")


def test_turned_sizes_say_which_policy_fits(tmp_path):
    contents = change_boxes(lambda b: [b[1], b[0], b[3], b[2]])
    for image in contents["train"]["images"]:
        image["height"], image["width"] = image["width"], image["height"]
    root = write(tmp_path / "set", contents, orientation=6)
    with pytest.raises(ValueError, match="orientation is 6: the boxes are meant for data.exif='ap"):
        load_split(DataConfig(root=str(root)), "train")
    turned = load_split(DataConfig(root=str(root), exif="apply"), "train")
    assert "image_turned" not in turned.health.odd


def test_oddities_of_boxes_and_files(tmp_path):
    contents = change_boxes(list)
    train = contents["train"]
    first = train["annotations"][0]
    x, y, w, h = first["bbox"]
    more = [
        {**first, "id": 901, "bbox": [x, y, w, h + 1]},  # IoU above 0.9
        {**first, "id": 902, "bbox": [2, 2, 9, 5], "area": 500},
        {**first, "id": 903, "bbox": [0.1, 0.1, 0.5, 0.5], "area": 0.25},
    ]
    train["annotations"] += more
    train["images"].append({**train["images"][0], "id": 77})
    root = write(tmp_path / "set", contents)
    dataset = load_split(DataConfig(root=str(root), on_error="skip"), "train")
    assert dataset.health.odd["box_near_double"] == 1
    assert dataset.health.odd["file_under_two_ids"] == 1
    assert dataset.health.odd["box_normalised"] == 1
    assert dataset.health.odd["area_larger_than_box"] == 1
    texts = [f.message for f in dataset.health.odd_examples if f.kind == "file_under_two_ids"]
    assert texts == ["image 77 (1_1.jpg) is the same file as image 1 (1_1.jpg)"]


def test_class_shares_that_differ(tmp_path):
    contents = change_boxes(list)
    for entry in contents["valid"]["annotations"]:
        entry["category_id"] = 1
    for n, entry in enumerate(contents["train"]["annotations"]):
        entry["category_id"] = 1 if n % 5 == 0 else 2
    text = "\n".join(report(write(tmp_path / "one", contents)))
    assert "! class shares differ: a 20" in text and "100.0% of val" in text
    for entry in contents["train"]["annotations"]:
        entry["category_id"] = 2
    text = "\n".join(report(write(tmp_path / "two", contents)))
    assert "! in val and never in train: a" in text


def test_classes_that_one_set_alone_lists(tmp_path):
    """As `atss check` compares them; a run matches them, or stops."""
    contents = change_boxes(list)
    contents["train"]["categories"] += [{"id": 3, "name": "c"}, {"id": 4, "name": "root"}]
    contents["train"]["annotations"][0]["category_id"] = 3
    contents["valid"]["categories"] += [{"id": 8, "name": "unused"}, {"id": 9, "name": "new"}]
    root = write(tmp_path / "set", contents)
    train, val = (load_split(DataConfig(root=str(root)), split) for split in ("train", "val"))
    lines = val_lines(train, val)[-4:]
    assert lines == [
        "  left out, no box in train or val has the class: root",
        "  val does not list the class, it is added there: c",
        "  train does not list the class, it is left out of val: unused, new",
        "  in train and never in val, so without an AP: c",
    ]
    text = "\n".join(report(root))
    assert "3 classes: " in text and "c 1 (val 0)" in text
    assert "in train and never in val, so without an AP: c" in text
    contents["valid"]["annotations"][0]["category_id"] = 9
    root = write(tmp_path / "more", contents)
    train, val = (load_split(DataConfig(root=str(root)), split) for split in ("train", "val"))
    stops = "  ! train does not list the class, so that training stops: new (1 in val)"
    assert stops in val_lines(train, val)
    with pytest.raises(UserError, match="only in the second: .'new'."):
        report(root)
    same = change_boxes(list)
    root = write(tmp_path / "same", same)
    train, val = (load_split(DataConfig(root=str(root)), split) for split in ("train", "val"))
    assert val_lines(train, val)[-1] == "  no file in both, the same classes"


def test_at_most_fifteen_lines(tmp_path):
    root = make_clean(tmp_path / "set")
    dataset = load_split(DataConfig(root=str(root)), "train")
    for n in range(30):
        dataset.health.add_odd(Finding(f"kind_{n:02d}", "an example"))
    lines = start_report(dataset)
    assert len(lines) == MAX_LINES and "more: `atss check`" in lines[-1]
    for length in (10, 70, 300, 5000):
        dataset.health.add_odd(Finding(f"a_kind_{length}", "x" * length))
        lines = start_report(dataset)
        assert MAX_LINES - 2 <= len(lines) <= MAX_LINES and max(map(len, lines)) <= COLUMNS


def test_a_set_of_which_nothing_is_left_gets_the_whole_report(tmp_path):
    contents = change_boxes(list)
    root = write(tmp_path / "set", contents)
    names = [image["file_name"] for image in contents["train"]["images"]]
    for name in names[:30]:
        (root / "train" / name).unlink()
    for name in names[30:]:
        (root / "train" / name).write_bytes(b"")
    config = DataConfig(root=str(root), on_error="skip", max_bad_fraction=1.0)
    with pytest.raises(UserError, match="no image is left") as error:
        load_split(config, "train")
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  dropped: 30 image_missing, such as image 1 (")
    assert lines[2].startswith("  dropped: 10 image_undecodable, such as image 31 (")
    with pytest.raises(UserError) as error:  # strict: ten examples, of both kinds
        load_split(DataConfig(root=str(root)), "train")
    assert "1_31.jpg): the file is empty" in str(error.value)


def test_images_without_any_box(tmp_path):
    contents = change_boxes(list)
    contents["train"]["annotations"] = []
    text = "\n".join(report(write(tmp_path / "set", contents)))
    assert "set/train: 40 images (40 without objects), 0 objects; 96x72 px" in text
    assert "! in val and never in train: a, b" in text


def test_more_objects_than_may_be_found(tmp_path):
    contents = change_boxes(list)
    entry = contents["valid"]["annotations"][0]
    contents["valid"]["annotations"] += [
        {**entry, "id": 1000 + n, "bbox": [n % 60, n // 2, 20, 12 + n % 7]} for n in range(101)
    ]
    root = write(tmp_path / "set", contents)
    train, val = (load_split(DataConfig(root=str(root)), split) for split in ("train", "val"))
    most = int(val.num_boxes.max())
    lines = start_report(train, val, max_detections=300)
    found = [line for line in joined(lines) if "can be found" in line]
    assert found == [
        "! 1 val images hold more objects than can be found (COCO's AP takes 100): image 1 "
        f"(2_1.jpg) has {most}"
    ]
    few = start_report(train, val, max_detections=2)
    assert any("eval.max_detections is 2" in line for line in joined(few))


def test_a_category_without_boxes_in_one_set_alone_is_kept_and_said(tmp_path):
    root = make_with_root_category(tmp_path / "set")
    path = root / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    text = "\n".join(report(root))
    assert "3 classes" in text and "! in val and never in train: things-a1b2" in text
    assert "odd, kept: 1 + 0 category_without_boxes" in text and "left out" not in text
