"""Folders of data in every layout: the same images give the same batches, and errors say what."""

import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from atss_jax.data import loader
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.config import DataConfig
from atss_jax.data.content import share_of
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.layouts import find_layout
from atss_jax.data.sources import load_split
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import coco_metrics

NAMES = ("cell", "dot", "worm")
FRACTION = 0.3
IMAGES = tuple(f"im_{n:02d}.png" for n in range(20))
VAL = tuple(name for name in IMAGES if share_of(name) < FRACTION)
TRAIN = tuple(name for name in IMAGES if name not in VAL)


def scene(name: str) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Noise of its own, and whole-pixel boxes (label, xywh); the last two images have none."""
    number = IMAGES.index(name)
    rng = np.random.default_rng(number)
    height, width = (60, 90) if number % 3 else (88, 56)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    boxes = []
    for n in range(0 if number >= 18 else 1 + number % 3):
        w, h = (int(v) for v in rng.integers(8, 30, 2))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        boxes.append(((number + n) % 3, [x, y, w, h]))
    return image, boxes


def write_images(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), scene(name)[0])


def coco_json(names: tuple[str, ...], prefix: str = "") -> str:
    images, annotations = [], []
    for name in names:
        image, boxes = scene(name)
        id_ = IMAGES.index(name) + 1
        height, width = image.shape[:2]
        images.append({"id": id_, "file_name": prefix + name, "height": height, "width": width})
        for label, box in boxes:
            fields = {"id": len(annotations) + 1, "image_id": id_, "category_id": label + 1}
            area = box[2] * box[3]
            annotations.append({**fields, "bbox": box, "area": area, "iscrowd": 0})
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def write_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, names in (("train2017", TRAIN), ("val2017", VAL)):
        write_images(root / split, names)
        (root / f"annotations/instances_{split}.json").write_text(coco_json(names))
        (root / f"annotations/captions_{split}.json").write_text(coco_json(names))


def write_roboflow(root: Path) -> None:
    for split, names in (("train", TRAIN), ("valid", VAL)):
        write_images(root / split, names)
        (root / split / "_annotations.coco.json").write_text(coco_json(names))
    (root / "README.roboflow.txt").write_text("exported")


def write_yolo(root: Path) -> None:
    """Boxes in training, polygons in validation; paths as Roboflow writes them."""
    for split, names in (("train", TRAIN), ("valid", VAL)):
        write_images(root / split / "images", names)
        (root / split / "labels").mkdir()
        for name in names:
            image, boxes = scene(name)
            height, width = image.shape[:2]
            lines = []
            for label, (x, y, w, h) in boxes:
                center = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                if split == "valid":
                    left, top = x / width, y / height
                    right, bottom = (x + w) / width, (y + h) / height
                    center = [left, bottom, right, bottom, (left + right) / 2, top, right, top]
                lines.append(" ".join(map(repr, [label, *center])))
            if lines:  # an image without objects needs no label file
                (root / split / "labels" / name.replace("png", "txt")).write_text("\n".join(lines))
    names = "".join(f"  {n}: {name}\n" for n, name in enumerate(NAMES))
    text = f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames:\n{names}"
    (root / "data.yaml").write_text(text)


def write_voc(root: Path) -> None:
    write_images(root / "JPEGImages", IMAGES)
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    for name in IMAGES:
        image, boxes = scene(name)
        height, width = image.shape[:2]
        objects = "".join(
            f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            "</bndbox></object>"
            for label, (x, y, w, h) in boxes
        )
        (root / "Annotations" / name.replace("png", "xml")).write_text(
            f"<annotation><filename>{name}</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
        )
    for split, names in (("train", TRAIN), ("val", VAL)):
        lines = "\n".join(Path(name).stem for name in names)
        (root / f"ImageSets/Main/{split}.txt").write_text(lines + "\n")


def write_one_json(root: Path) -> None:
    write_images(root / "images", IMAGES)
    (root / "result.json").write_text(coco_json(IMAGES))


WRITERS = {
    "COCO": write_coco,
    "Roboflow's COCO": write_roboflow,
    "YOLO": write_yolo,
    "Pascal VOC": write_voc,
    "one COCO JSON file": write_one_json,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("layout") / "set" for kind in WRITERS}
    for kind, write in WRITERS.items():
        folders[kind].mkdir()
        write(folders[kind])
    return folders


def load(root: Path, split: str = "train") -> DetectionDataset:
    return load_split(DataConfig(root=str(root), val_fraction=FRACTION), split)


def batch_bytes(dataset: DetectionDataset) -> bytes:
    """Six training batches and every evaluation batch."""
    sizes = {"buckets": ((64, 96), (96, 64)), "max_long_side": 96}
    plan = BatchPlan(dataset.sizes, **sizes, global_batch=3, seed=1, short_sides=(48, 56))
    out = io.BytesIO()
    batches = [loader.batch_at(dataset, plan, step) for step in range(6)]
    with loader.eval_batches(dataset, **sizes, short_side=56, batch_size=4) as evaluated:
        for batch in [*batches, *evaluated]:
            rest = (batch.image, batch.image_size, batch.record_index, batch.scale)
            for value in (*rest, *batch.ground_truth):
                out.write(np.asarray(value).tobytes())
    return out.getvalue()


def metrics(dataset: DetectionDataset) -> dict[str, float]:
    """Of boxes that are a little off, with scores by place."""
    results = [
        {
            "image_id": int(dataset.image_ids[n]),
            "category_id": dataset.category_ids[int(label)],
            "bbox": [float(b[0] + n % 4), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": 1 / (2 + n),
        }
        for n in range(dataset.num_records)
        for b, label in zip(dataset.boxes(n), dataset.labels(n), strict=True)
    ]
    truth, names = dataset.coco_ground_truth(), dataset.class_names
    return coco_metrics(truth, results, class_names=names, category_ids=dataset.category_ids)


def test_five_layouts_give_the_same_batches_and_metrics(roots):
    expected = {split: load(roots["COCO"], split) for split in ("train", "val")}
    assert expected["train"].num_records == len(TRAIN) and expected["val"].num_records == len(VAL)
    for split, wanted in expected.items():
        want_bytes, want_metrics = batch_bytes(wanted), metrics(wanted)
        assert 0.2 < want_metrics["AP"] < 1 and len(want_bytes) > 100_000
        for kind, root in roots.items():
            assert find_layout(root, FRACTION).kind == kind
            dataset = load(root, split)
            assert dataset.class_names == NAMES and not dataset.health.bad
            assert batch_bytes(dataset) == want_bytes, (kind, split)
            assert metrics(dataset) == want_metrics, (kind, split)


def test_a_folder_can_be_evaluated_whole(roots):
    root = str(roots["one COCO JSON file"])
    halves = [load_split(DataConfig(root=root), split).num_records for split in ("train", "val")]
    whole = DataConfig(root=root, val_fraction=1)
    assert load_split(whole, "val").num_records == sum(halves) and min(halves) > 0
    with pytest.raises(UserError, match="leaves no image to train on"):
        load_split(whole, "train")


def test_what_was_found_is_said(roots):
    text = str(find_layout(roots["Roboflow's COCO"]))
    root = roots["Roboflow's COCO"]
    assert text.splitlines() == [
        "Roboflow's COCO",
        f"  train: {root}/train/_annotations.coco.json with images in {root}/train",
        f"  val: {root}/valid/_annotations.coco.json with images in {root}/valid",
    ]
    one = roots["one COCO JSON file"]
    assert "images, 70% of them by file name" in str(find_layout(one, 0.3).train)
    yaml = str(roots["YOLO"] / "data.yaml")
    assert find_layout(yaml) == find_layout(roots["YOLO"])
    inside = roots["Pascal VOC"].parent  # a folder that holds nothing but the set
    assert find_layout(inside) == find_layout(roots["Pascal VOC"])


def test_results_of_yolo_and_voc_name_the_files(roots):
    for kind in ("YOLO", "Pascal VOC"):
        dataset = load(roots[kind], "val")
        results = [{"image_id": int(dataset.image_ids[0]), "category_id": dataset.category_ids[1]}]
        (result,) = dataset.original_results(results)
        assert result["image_id"] == VAL[0]
        assert dataset.inside_results([result]) == results


def test_the_split_by_name_never_changes():
    assert share_of("im_00.png") == 0xBEC4EC7CDA62 / 2**48  # printf im_00.png | sha256sum
    assert len({share_of(f"a_jpg.rf.{n}.jpg") for n in range(9)}) == 1
    shares = [share_of(f"{n}.jpg") for n in range(2000)]
    assert np.histogram(shares, bins=4, range=(0, 1))[0].min() > 430  # 500 each; sd 19
    assert set(VAL) | set(TRAIN) == set(IMAGES) and not set(VAL) & set(TRAIN)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no data set found there. Looked for COCO .*YOLO .*Pascal VOC.* It holds nothing"),
        ({"a.txt": "x", "b/c.txt": "y"}, r"It holds a\.txt, b\."),
        ({"package.json": "{}"}, "no data set found there"),
        ({"one.json": "JSON", "two.json": "JSON"}, "which of these annotation files"),
        ({"train.json": "JSON", "training.json": "JSON"}, "several annotation files for train"),
        ({"train.json": "JSON", "data.yaml": "YAML", "images/a.png": ""}, "holds several sets"),
        ({"labels/a.txt": "0 .5 .5 .1 .1", "images/a.png": ""}, "label files in labels/ and no da"),
        ({"data.yaml": "train: images\nnames: 3"}, "no names of classes"),
        ({"data.yaml": "train: images\nnames: [a, b]\nnc: 3"}, "nc is 3, and there are 2 names"),
        ({"data.yaml": "train: pictures\nnames: [a]"}, "train: 'pictures' is not there"),
        ({"data.yaml": "names: [a]\nval: x"}, "no train. Name the folder"),
        ({"data.yaml": "names: [a]\ntrain: {"}, "not a YAML file"),
    ],
)
def test_nothing_or_several_things_there(tmp_path, files, message):
    words = {"JSON": coco_json(("im_00.png",)), "YAML": "train: images\nnames: [a]"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(words.get(text, text))
    with pytest.raises(UserError, match=message):
        find_layout(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_layout(tmp_path / "none")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"neither a folder, nor a data\.yaml, nor a COCO JSON"):
        find_layout(tmp_path / "a.json")


def test_images_in_two_folders_are_ambiguous(tmp_path):
    (tmp_path / "all.json").write_text(coco_json(IMAGES[:3]))
    for folder in ("one", "two"):
        write_images(tmp_path / folder, IMAGES[:3])
    with pytest.raises(UserError, match="are in each of .*one, .*two"):
        find_layout(tmp_path)
    shutil.rmtree(tmp_path / "two")
    assert find_layout(tmp_path).train.images == str(tmp_path / "one")


LABEL_LINES = [
    ("0 0.5 0.5 0.2", "label_line", "3 coordinates"),
    ("0 0.5 0.5 0.2 0.2 0.9", "label_line", "5 coordinates"),
    ("0 0.5 0.5 0.2 x", "label_line", "is not numbers"),
    ("0.5 0.5 0.5 0.2 0.2", "label_line", "not a class number"),
    ("0 0.5 nan 0.2 0.2", "label_line", "finite"),
    ("9 0.5 0.5 0.2 0.2", "unknown_category", "category_id 9"),
    ("0 0.5 0.5 0 0.2", "box_empty", "has no area"),
    ("0 1.5 0.5 0.2 0.2", "box_outside", "lies outside"),
]


@pytest.mark.parametrize(("line", "kind", "message"), LABEL_LINES)
def test_bad_label_lines_are_named(roots, tmp_path, line, kind, message):
    root = tmp_path / "set"
    shutil.copytree(roots["YOLO"], root)
    path = root / "train/labels" / TRAIN[0].replace("png", "txt")
    path.write_text(path.read_text() + f"\n{line}\n")
    number = len(path.read_text().splitlines())
    with pytest.raises(ValueError, match=f"{path.name}.*{number}.*{message}"):
        load(root)
    config = DataConfig(
        root=str(root), val_fraction=FRACTION, on_error="skip", max_bad_fraction=0.1
    )
    dataset = load_split(config, "train")
    assert dict(dataset.health.bad) == {kind: 1}
    assert len(dataset.annotations.id) == len(load(roots["YOLO"]).annotations.id)


def test_yolo_boxes_in_pixels_are_refused(roots, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(roots["YOLO"], root)
    for path in (root / "train/labels").iterdir():
        path.write_text("0 40 30 20 20")
    with pytest.raises(UserError, match="as if in px"):
        load(root)


def test_voc_of_today_and_of_others(roots, tmp_path):
    """Fractions count from 0; difficult objects become crowds; what is missing is named."""
    root = tmp_path / "set"
    shutil.copytree(roots["Pascal VOC"], root)
    page = root / "Annotations" / TRAIN[0].replace("png", "xml")
    text = page.read_text()
    assert "<difficult>0" in text
    x = int(text.split("<xmin>")[1].split("<")[0])
    page.write_text(
        text.replace(f"<xmin>{x}<", f"<xmin>{x}.5<").replace("<difficult>0", "<difficult>1", 1)
    )
    dataset = load(root)
    assert dataset.health.odd["voc_continuous"] == 1 and dataset.health.odd["voc_difficult"] == 1
    assert dataset.annotations.xywh[0, 0] == x + 0.5 and dataset.annotations.is_crowd[0]
    page.write_text("<annotation>")
    with pytest.raises(ValueError, match=f"{page.name}: not an XML file"):
        load(root)
    page.unlink()
    with pytest.raises(ValueError, match=f"{page.name}: no such file"):
        load(root)
