"""COCO files, good and bad: every way to be bad has a kind, a message with file and id."""

import copy
import io
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from atss_jax.data import batch_rows, image_files, loader
from atss_jax.data import content as content_module
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.data.images import ORIENTATION_TAG

IMAGE_SIZES = {3: (40, 60), 7: (50, 30), 9: (32, 48)}


def good_content() -> dict:
    """Three images; ids with gaps; a crowd; an image without boxes (9)."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
            for i, (h, w) in reversed(IMAGE_SIZES.items())
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            annotation(11, 3, 20, [10, 5, 20, 30], area=321.5),
            annotation(900100000250, 7, 4, [1.5, 2.25, 10, 12]),
            annotation(13, 3, 4, [0, 0, 60, 40], iscrowd=1),
            annotation(14, 3, 4, [40, 20, 15.5, 10.25]),
        ],
    }


def annotation(id_: int, image_id: int, category_id: int, bbox: list, **fields) -> dict:
    area = bbox[2] * bbox[3]
    entry = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return entry | {"area": area, "iscrowd": 0} | fields


def write_set(folder: Path, content: object, *, images: bool = True) -> tuple[str, str]:
    if images:
        for i, (h, w) in IMAGE_SIZES.items():
            cv2.imwrite(str(folder / f"{i}.png"), np.full((h, w, 3), 40 * i % 255, np.uint8))
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path), str(folder)


def test_good_file(tmp_path):
    dataset = load_coco(*write_set(tmp_path, good_content()), name="mine")
    assert dataset.image_ids.tolist() == [3, 7, 9]  # ascending, whatever the file's order
    assert dataset.sizes.tolist() == [[40, 60], [50, 30], [32, 48]]
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (4, 20)
    np.testing.assert_array_equal(dataset.boxes(0), [[10, 5, 30, 35], [40, 20, 55.5, 30.25]])
    assert dataset.labels(0).tolist() == [1, 0] and dataset.labels(2).tolist() == []
    assert dataset.boxes(2).shape == (0, 4) and dataset.boxes(0).dtype == np.float32
    assert dataset.has_objects.tolist() == [True, True, False]
    assert dataset.num_boxes.tolist() == [2, 1, 0]
    assert dataset.file_name(1) == "7.png" and dataset.image_bytes(1)[1:4] == b"PNG"
    assert not dataset.health.bad and dict(dataset.health.odd) == {"image_without_boxes": 1}
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.boxes(0), dataset.boxes(0))
    assert again.image_bytes(2) == dataset.image_bytes(2)


def test_ground_truth_is_the_files(tmp_path):
    content = good_content()
    truth = load_coco(*write_set(tmp_path, content), name="mine").coco_ground_truth()
    by_id = {a["id"]: a for a in truth["annotations"]}
    assert by_id == {a["id"]: a for a in content["annotations"]}
    assert sorted(truth["images"], key=lambda i: i["id"]) == sorted(
        content["images"], key=lambda i: i["id"]
    )
    json.dumps(truth)


def test_real_sets(shared):
    for folder, split, images, boxes in (
        ("bccd", "train", 205, 2804),
        ("coco_sample", "train2017", 50, 387),
        ("coco_sample", "val2017", 49, 494),
    ):
        base = shared / "data" / folder
        path = base / "annotations" / f"instances_{split}.json"
        dataset = load_coco(str(path), str(base / "images" / split), name=folder)
        assert dataset.num_records == images and int(dataset.num_boxes.sum()) == boxes
        original = json.loads(path.read_text())
        truth = {a["id"]: a for a in dataset.coco_ground_truth()["annotations"]}
        assert len(truth) == len(original["annotations"])
        for a in original["annotations"]:
            for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
                assert truth[a["id"]][key] == a[key]


def test_bad_boxes_of_bccd(shared):
    base = shared / "data" / "bccd"
    args = str(base / "annotations/instances_val_with_bad.json"), str(base / "images/val")
    with pytest.raises(ValueError, match=r"BloodImage_00338.jpg\): bbox .* has no area"):
        load_coco(*args, name="bccd")
    dataset = load_coco(*args, name="bccd", config=DataConfig(on_error="skip"))
    assert dict(dataset.health.bad) == {"box_empty": 1}
    assert int(dataset.num_boxes.sum()) == 1137


NAN, INFINITY = float("nan"), float("inf")
BAD_ANNOTATIONS = {
    "zero width": ({"bbox": [1, 1, 0, 5]}, "box_empty"),
    "zero height": ({"bbox": [1, 1, 5, 0]}, "box_empty"),
    "zero box": ({"bbox": [1, 1, 0, 0]}, "box_empty"),
    "negative width": ({"bbox": [10, 1, -5, 5]}, "box_empty"),
    "negative height": ({"bbox": [10, 10, 5, -5]}, "box_empty"),
    "nan x": ({"bbox": [NAN, 1, 5, 5]}, "box_not_finite"),
    "nan width": ({"bbox": [1, 1, NAN, 5]}, "box_not_finite"),
    "infinite height": ({"bbox": [1, 1, 5, INFINITY]}, "box_not_finite"),
    "right of the image": ({"bbox": [61, 1, 5, 5]}, "box_outside"),
    "touching the right edge": ({"bbox": [60, 1, 5, 5]}, "box_outside"),
    "above the image": ({"bbox": [1, -9, 5, 5]}, "box_outside"),
    "below float32": ({"bbox": [50, 1, 1e-9, 5]}, "box_outside"),
    "three numbers": ({"bbox": [1, 1, 5]}, "box_type"),
    "text": ({"bbox": [1, 1, "5", 5]}, "box_type"),
    "null box": ({"bbox": None}, "box_type"),
    "true as number": ({"bbox": [True, 1, 5, 5]}, "box_type"),
    "unknown category": ({"category_id": 5}, "unknown_category"),
    "text category": ({"category_id": "4"}, "unknown_category"),
    "null category": ({"category_id": None}, "unknown_category"),
    "unknown image": ({"image_id": 4}, "unknown_image"),
    "text image": ({"image_id": "3"}, "unknown_image"),
    "duplicate id": ({"id": 11}, "duplicate_annotation_id"),
    "null image": ({"image_id": None}, "unknown_image"),
    "image as list": ({"image_id": [3]}, "unknown_image"),
    "fractional id": ({"id": 1.5}, "annotation_id"),
    "true as id": ({"id": True}, "annotation_id"),
    "empty id": ({"id": ""}, "annotation_id"),
    "category as object": ({"category_id": {}}, "unknown_category"),
    "true as category": ({"category_id": True}, "unknown_category"),
    "box of 400 digits": ({"bbox": [1, 1, 10**400, 5]}, "box_not_finite"),
    "area of 400 digits": ({"area": 10**400}, "area"),
    "area that overflows": ({"bbox": [1, 1, 1e308, 1e308], "area": None}, "box_not_finite"),
    "text area": ({"area": "12"}, "area"),
    "text crowd": ({"iscrowd": "0"}, "iscrowd"),
    "nan area": ({"area": NAN}, "area"),
    "negative area": ({"area": -1}, "area"),
    "crowd of 2": ({"iscrowd": 2}, "iscrowd"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_bad_annotation(tmp_path, case):
    change, kind = BAD_ANNOTATIONS[case]
    content = good_content()
    content["annotations"][3].update(change)
    args = write_set(tmp_path, content)
    with pytest.raises(ValueError, match="annotation .* of image") as error:
        load_coco(*args, name="mine")
    assert args[0] in str(error.value) and 'data.on_error="skip"' in str(error.value)
    assert f"annotation {content['annotations'][3]['id']} " in str(error.value)
    dataset = load_coco(
        *args, name="mine", config=DataConfig(on_error="skip", max_bad_fraction=0.25)
    )
    assert dict(dataset.health.bad) == {kind: 1}
    assert dataset.num_boxes.tolist() == [1, 1, 0] and len(dataset.annotations.id) == 3
    with pytest.raises(ValueError, match="1 of 4 annotations are bad .*max_bad_fraction=0.2"):
        load_coco(*args, name="mine", config=DataConfig(on_error="skip", max_bad_fraction=0.2))


@pytest.mark.parametrize("entry", [None, 5, [], {}])
def test_annotation_that_is_no_object(tmp_path, entry):
    content = good_content()
    content["annotations"].append(entry)
    args = write_set(tmp_path, content)
    with pytest.raises(ValueError, match="annotation number 4"):
        load_coco(*args, name="mine")
    dataset = load_coco(
        *args, name="mine", config=DataConfig(on_error="skip", max_bad_fraction=0.2)
    )
    assert dict(dataset.health.bad) == {"annotation_type": 1}


BAD_IMAGES = {
    "missing file": ({"file_name": "none.png"}, "image_missing"),
    "a folder": ({"file_name": "."}, "image_missing"),
    "no file name": ({"file_name": None}, "image_file_name"),
    "empty file name": ({"file_name": ""}, "image_file_name"),
    "duplicate id": ({"id": 7}, "duplicate_image_id"),
    "fractional id": ({"id": 3.5}, "image_id"),
    "width of 400 digits": ({"width": 10**400}, "image_size"),
    "outside": ({"file_name": "../3.png"}, "image_outside"),
    "absolute": ({"file_name": "/etc/hostname"}, "image_outside"),
    "null id": ({"id": None}, "image_id"),
    "zero width": ({"width": 0}, "image_size"),
    "text height": ({"height": "40"}, "image_size"),
    "nan height": ({"height": NAN}, "image_size"),
    "only one side": ({"height": None}, "image_size"),
    "another size": ({"height": 41}, "image_size_mismatch"),
    "sides exchanged": ({"height": 60, "width": 40}, "image_size_mismatch"),
    "not an image": ({"file_name": "annotations.json"}, "image_undecodable"),
    "empty": ({"file_name": "empty.jpg"}, "image_undecodable"),
    "cut off": ({"file_name": "cut.jpg"}, "image_truncated"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image(tmp_path, case):
    change, kind = BAD_IMAGES[case]
    content = good_content()
    content["images"][2].update(change)  # image 3
    args = write_set(tmp_path, content)
    (tmp_path / "empty.jpg").touch()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    entry = content["images"][2]
    with pytest.raises(ValueError, match="bad records") as error:
        load_coco(*args, name="mine")
    assert str(entry["file_name"]) in str(error.value) and str(entry["id"]) in str(error.value)
    dataset = load_coco(
        *args, name="mine", config=DataConfig(on_error="skip", max_bad_fraction=1.0)
    )
    assert dataset.health.bad[kind] == 1 and dataset.health.bad_images == 1
    # the entry that came first keeps its id; annotations go with a dropped image
    assert 3 not in dataset.image_ids
    assert len(dataset.annotations.id) == 1


def test_bad_files_are_never_skipped(tmp_path):
    def load(content: object):
        return load_coco(
            *write_set(tmp_path, content), name="mine", config=DataConfig(on_error="skip")
        )

    good = good_content()
    cases: list[tuple[object, str]] = [
        ("{", "malformed JSON"),
        (json.dumps(good)[:-30], "malformed JSON"),
        ([], 'no list "images"'),
        ({k: v for k, v in good.items() if k != "annotations"}, 'no list "annotations"'),
        (good | {"categories": {}}, 'no list "categories"'),
        (good | {"categories": []}, "no categories"),
        (good | {"images": []}, "no image is listed"),
        (good | {"categories": good["categories"] * 2}, "category id 20 appears twice"),
        (
            good | {"categories": [{"id": 4, "name": "cat"}, {"id": 20, "name": "cat"}]},
            "categories 4 and 20 are both named 'cat'",
        ),
        ("[" * 200_000, "annotations.json: not an annotation file"),
        ('{"images": [' + "9" * 5000 + "]}", "annotations.json: not an annotation file"),
        (good | {"annotations": [annotation(1, 3, 4, [0.1, 0.2, 0.5, 0.5])]}, "within 0..1"),
        (good | {"categories": [{"id": 1}]}, "needs an id .* and a name"),
        (good | {"categories": [{"id": 1.0, "name": "a"}]}, "needs an id .* and a name"),
    ]
    for content, message in cases:
        with pytest.raises(ValueError, match=message):
            load(content)
    with pytest.raises(FileNotFoundError, match="annotation file"):
        load_coco(str(tmp_path / "none.json"), str(tmp_path), name="mine")
    path, _ = write_set(tmp_path, good)
    with pytest.raises(FileNotFoundError, match="image folder"):
        load_coco(path, str(tmp_path / "none"), name="mine")
    with pytest.raises(ValueError, match="differ from the expected"):
        load_coco(path, str(tmp_path), name="mine", class_names=("dog", "cat"))


def test_oddities_are_counted_and_kept(tmp_path):
    content = good_content()
    extra = [
        annotation(0, 7, 4, [2, 2, 5, 5]),
        annotation(15, 7, 4, [20, 10, 25, 5]),  # sticks out by 15
        annotation(16, 7, 4, [20, 10, 25, 5]),  # again
        annotation(17, 9, 4, [0, 0, 48, 32], iscrowd=1),  # only a crowd
    ]
    without_id = copy.deepcopy(extra[0])
    del without_id["id"], without_id["area"], without_id["iscrowd"]
    content["annotations"] += [*extra, without_id]
    del content["images"][0]["height"], content["images"][0]["width"]
    dataset = load_coco(*write_set(tmp_path, content), name="mine")
    assert dict(dataset.health.odd) == {
        "image_size_missing": 1,
        "annotation_id_missing": 1,
        "area_missing": 1,
        "box_clipped": 2,
        "box_double": 2,
        "image_all_crowd": 1,
        "annotation_id_zero": 1,
    }
    assert dataset.boxes(1)[2].tolist() == [20, 10, 30, 15]
    assert dataset.has_objects.tolist() == [True, True, False]
    ids = [a["id"] for a in dataset.coco_ground_truth()["annotations"]]
    assert 0 not in ids and len(set(ids)) == len(ids)  # pycocotools cannot tell 0 from no match


def test_exif_policies(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 200
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    content = good_content()
    args = write_set(tmp_path, content)
    Image.fromarray(pixels).save(tmp_path / "3.png", exif=exif)
    assert load_coco(*args, name="mine").sizes[0].tolist() == [40, 60]
    with pytest.raises(ValueError, match="60x40 .* the file is 40x60 with data.exif='apply'"):
        load_coco(*args, name="mine", config=DataConfig(exif="apply"))
    with pytest.raises(ValueError, match=r"image 3 \(.*3.png\): EXIF orientation 6"):
        load_coco(*args, name="mine", config=DataConfig(exif="error"))
    content["images"][2].update({"height": 60, "width": 40})
    content["annotations"] = []
    turned = load_coco(
        *write_set(tmp_path, content, images=False), name="mine", config=DataConfig(exif="apply")
    )
    assert turned.sizes[0].tolist() == [60, 40] and turned.orientations.tolist() == [6, 1, 1]


def test_awkward_images(shared, tmp_path):
    """What decodes is kept, and every other file counted (skip) or named (strict)."""
    folder = shared / "data" / "awkward_images"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    content = {
        "images": [{"id": n + 1, "file_name": f["file"]} for n, f in enumerate(files)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [],
    }
    path = tmp_path / "awkward.json"
    path.write_text(json.dumps(content))
    good = [n + 1 for n, f in enumerate(files) if f["decodes"]]
    dataset = load_coco(
        str(path),
        str(folder),
        name="awkward",
        config=DataConfig(on_error="skip", max_bad_fraction=0.5),
    )
    assert dataset.image_ids.tolist() == good
    assert dataset.health.bad_images == len(files) - len(good)
    plan = BatchPlan(
        dataset.sizes,
        buckets=((64, 96), (96, 64)),
        global_batch=1,
        seed=0,
        short_sides=(48,),
        max_long_side=96,
    )
    seen = set()
    for step in range(len(good)):
        batch = loader.batch_at(dataset, plan, step, max_boxes=1)
        seen.update(batch.record_index.tolist())
        assert (batch.image_size >= 1).all() and not batch.ground_truth.is_valid.any()
    assert seen == set(range(len(good)))
    with pytest.raises(ValueError) as error:
        load_coco(str(path), str(folder), name="awkward")
    for entry in files:
        assert (entry["file"] in str(error.value)) == (not entry["decodes"]), entry["file"]


def test_ids_may_be_large_or_text(tmp_path):
    """Inside they are dense int64; results get the originals back."""
    image_ids = {3: 2**64 + 1, 7: "00f1-c2", 9: -5}
    categories = {20: 2**63, 4: "cat-uuid"}
    content = good_content()
    for image in content["images"]:
        image["id"] = image_ids[image["id"]]
    for category in content["categories"]:
        category["id"] = categories[category["id"]]
    for n, a in enumerate(content["annotations"]):
        a["image_id"], a["category_id"] = image_ids[a["image_id"]], categories[a["category_id"]]
        a["id"] = ["a", 2**70, 0, -(2**63)][n]
    dataset = load_coco(*write_set(tmp_path, content), name="mine")
    assert [dataset.image_id(n) for n in range(3)] == [-5, 2**64 + 1, "00f1-c2"]
    assert dataset.image_ids.tolist() == [1, 2, 3] and dataset.category_ids == (1, 2)
    assert dataset.class_names == ("dog", "cat")  # integers before text
    assert dataset.labels(1).tolist() == [0, 1] and dataset.num_boxes.tolist() == [0, 2, 1]
    assert dataset.describe(2) == "image 00f1-c2 (7.png)"
    truth = dataset.coco_ground_truth()
    assert sorted(a["id"] for a in truth["annotations"]) == [1, 2, 3, 4]
    result = {"image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5}
    expected = result | {"image_id": "00f1-c2", "category_id": "cat-uuid"}
    assert dataset.original_results([result]) == [expected]
    assert dataset.inside_results([expected]) == [result]
    (tmp_path / "7.png").unlink()
    with pytest.raises(ValueError, match=r"image 00f1-c2 \(7.png\) of mine: "):
        batch_rows.read_image(dataset, 2)


def test_byte_order_mark_and_lvis_names(tmp_path):
    content = good_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    path, folder = write_set(tmp_path, content, images=False)
    (tmp_path / "train2017").mkdir()
    write_set(tmp_path / "train2017", content)
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    for images in (folder, f"{folder}/train2017"):
        assert load_coco(path, images, name="lvis").sizes.tolist() == [[40, 60], [50, 30], [32, 48]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub\\Ä.png", "sub/Ä.png"),
        ("SUB/ä.PNG", "sub/Ä.png"),
        ("sub/A\u0308.png", "sub/Ä.png"),
        (" sub/Ä.png ", "sub/Ä.png"),
        ("{last}/sub/Ä.png", "sub/Ä.png"),
        ("{folder}/sub/Ä.png", "sub/Ä.png"),
        ("/home/me/data/sub/Ä.png", "sub/Ä.png"),
        ("C:\\data\\sub\\Ä.png", "sub/Ä.png"),
        ("https://host.example/sub/%C3%84.png?size=large", "sub/Ä.png"),
        ("other/Ä.png", None),
        ("../sub/Ä.png", None),
    ],
)
def test_names_of_other_software(tmp_path, name, expected):
    content = good_content()
    name = name.format(last=tmp_path.name, folder=tmp_path)
    content["images"][2]["file_name"] = name
    args = write_set(tmp_path, content)
    (tmp_path / "sub").mkdir()
    (tmp_path / "3.png").rename(tmp_path / "sub" / "Ä.png")
    if expected is None:
        with pytest.raises(ValueError, match="bad records") as error:
            load_coco(*args, name="mine")
        assert "a file of that name is at 'sub/Ä.png'" in str(error.value)
        return
    dataset = load_coco(*args, name="mine")
    assert dataset.file_name(0) == expected and dataset.health.odd["image_name"] == 1


def test_ambiguous_names_are_not_guessed(tmp_path):
    content = good_content()
    content["images"][2]["file_name"] = "Sub/A.PNG"
    args = write_set(tmp_path, content)
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "A.png"):
        (tmp_path / "sub" / name).write_bytes((tmp_path / "3.png").read_bytes())
    with pytest.raises(ValueError, match=r"it may mean 'sub/[aA].png' or 'sub/[aA].png'"):
        load_coco(*args, name="mine")


def test_names_outside_the_folder_by_a_field(tmp_path):
    content = good_content()
    (tmp_path / "inside").mkdir()
    content["images"][2]["file_name"] = "../3.png"
    content["images"][1]["file_name"] = str(tmp_path / "7.png")
    write_set(tmp_path, content)
    path, folder = write_set(tmp_path / "inside", content)
    with pytest.raises(ValueError, match=r"leaves the image folder. Set data.allow_outside"):
        load_coco(path, folder, name="mine")
    dataset = load_coco(path, folder, name="mine", config=DataConfig(allow_outside=True))
    assert dataset.file_name(0) == "../3.png" and dataset.image_bytes(1)[1:4] == b"PNG"


def test_pipes_are_not_opened(tmp_path):
    args = write_set(tmp_path, good_content())
    (tmp_path / "3.png").unlink()
    os.mkfifo(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"image 3 .*3.png\): .*not a regular file"):
        load_coco(*args, name="mine")


def test_annotations_go_with_an_image_dropped_for_its_entry(tmp_path):
    content = good_content()
    del content["images"][2]["file_name"]
    args = write_set(tmp_path, content)
    dataset = load_coco(
        *args, name="mine", config=DataConfig(on_error="skip", max_bad_fraction=0.4)
    )
    assert dict(dataset.health.bad) == {"image_file_name": 1}
    assert dataset.health.bad_annotations == 0


def test_at_most_64_kib_of_a_good_image_are_read(tmp_path, monkeypatch):
    content = good_content()
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    for n, suffix in enumerate(("jpg", "png", "tif")):
        file_name = f"{n}.{suffix}"
        content["images"][n] |= {"file_name": file_name, "width": 600, "height": 400}
        Image.fromarray(noise).save(tmp_path / file_name)
        assert (tmp_path / file_name).stat().st_size > 140_000
    cut = tmp_path / "cut.jpg"
    data = (tmp_path / "0.jpg").read_bytes()
    cut.write_bytes(data[: len(data) - 1000])
    args = write_set(tmp_path, content, images=False)
    read: list[int] = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer) or 0)
            return read[-1]

    monkeypatch.setattr(content_module, "FULL_DECODE_LIMIT", 0)
    monkeypatch.setattr(
        image_files.FolderSource,
        "open",
        lambda self, index: io.BufferedReader(Counted(self.path(index)), 4096),
    )
    assert load_coco(*args, name="mine").num_records == 3
    assert 0 < sum(read) <= 3 * (64 * 1024 + 4096)  # and what the buffer reads ahead
    content["images"][0]["file_name"] = "cut.jpg"
    with pytest.raises(ValueError, match=r"cut.jpg\): the file is cut off"):
        load_coco(*write_set(tmp_path, content, images=False), name="mine")
