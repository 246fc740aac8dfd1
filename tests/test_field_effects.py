"""Every field of the data has its effect, and no field of a recipe is without a test of its effect.

A case gives a field a second value, and asks the component that owns it what it got. See also
`test_field_programs.py` (the mathematical groups) and `test_field_runs.py` (those of a run).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atss_jax.config import field_infos
from atss_jax.data import index, loader
from atss_jax.data.augment_list import parse_augmentation
from atss_jax.data.tfds_builders import prepare_records
from atss_jax.errors import UserError
from atss_jax.run import auto_fields, build, recipe_io
from atss_jax.run.recipe import Recipe
from tests import test_field_programs, test_field_runs, test_limits, tiny

DATA_PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve training and four validation images in COCO format, and the training set as records.

    Every fourth training image has no object. turned.json names one image by its size after its
    EXIF orientation, bad.json one that is missing, and outside.json all from another folder.
    """
    folder = tmp_path_factory.mktemp("data")
    tiny.make_coco(folder, 12, "train")
    tiny.make_coco(folder, 4, "val")
    content = json.loads((folder / "train.json").read_text())
    picture = Image.open(folder / "train" / "0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "train" / "turned.jpg", exif=exif)
    first = content["images"][0]
    kept = [a for a in content["annotations"] if a["image_id"] != first["id"]]
    upright = {"file_name": "turned.jpg", "height": first["width"], "width": first["height"]}
    turned = {"images": [first | upright, *content["images"][1:]], "annotations": kept}
    (folder / "turned.json").write_text(json.dumps(content | turned))
    missing = [dict(content["images"][0], file_name="missing.png"), *content["images"][1:]]
    (folder / "bad.json").write_text(json.dumps(content | {"images": missing}))
    outside = [
        dict(image, file_name=f"../train/{image['file_name']}") for image in content["images"][1:]
    ]
    changed = content | {"images": outside, "annotations": kept}
    (folder / "outside.json").write_text(json.dumps(changed))
    for split in ("train", "val"):
        dataset = build.load_dataset(tiny.make_config(folder), split)
        prepare_records(dataset, str(folder / "records"), "mine", split)
    return folder


def outcome(function: Callable[[], Any]) -> Any:
    """What a function returns, or the text of the error that a user sees."""
    try:
        return function()
    except (UserError, ValueError, FileNotFoundError) as error:
        return str(error)


def num_images(recipe: Recipe) -> tuple[Any, Any]:
    """Images of train and val; for a set that cannot be read, what is said."""
    return tuple(
        outcome(lambda split=split: build.load_dataset(recipe, split).num_records)
        for split in ("train", "val")
    )


def first_batch(recipe: Recipe) -> Any:
    """Shapes and objects of the first batch of training."""
    dataset = build.load_dataset(recipe, "train")
    plan = build.make_plan(recipe, dataset)
    data = recipe.data
    batch = loader.batch_at(
        dataset, plan, 0, max_boxes=data.max_boxes, on_overflow=data.on_overflow
    )
    valid = np.asarray(batch.ground_truth.is_valid)
    return batch.image.shape, batch.image_size.tolist(), valid.sum(1).tolist(), valid.shape[1]


def plan_of(recipe: Recipe) -> Any:
    """The plan of the training batches."""
    return build.make_plan(recipe, build.load_dataset(recipe, "train"))


def drawn_sides(recipe: Recipe) -> set[int]:
    """Short sides in the first 20 steps."""
    plan = plan_of(recipe)
    return {int(min(size)) for step in range(20) for size in plan.step(step).target.tolist()}


def workers(recipe: Recipe, monkeypatch) -> list[Any]:
    """What Grain is told: worker processes and batches ahead."""
    told: list[Any] = []
    monkeypatch.setattr(loader, "_run", lambda _, *rest: told.append(rest) or iter(()))
    dataset = build.load_dataset(recipe, "train")
    build.train_batches(recipe, dataset, build.make_plan(recipe, dataset), 0)
    return told


def test_paths_reach_their_split(folder):
    for field in DATA_PATHS:
        recipe = tiny.make_config(folder, **{f"data__{field}": str(folder / "nowhere")})
        train, val = num_images(recipe)
        wrong, right = (train, val) if field.startswith("train") else (val, train)
        assert "nowhere" in wrong and right in (12, 4)


def test_the_root_takes_the_place_of_the_paths(folder):
    root = folder / "one"
    (root / "images").mkdir(parents=True, exist_ok=True)
    for file in (folder / "train").glob("*.png"):
        (root / "images" / file.name).write_bytes(file.read_bytes())
    (root / "annotations.json").write_text((folder / "train.json").read_text())
    shares = [
        num_images(tiny.make_config(folder, data__root=str(root), data__val_fraction=fraction))
        for fraction in (0.25, 0.75)
    ]
    assert all(sum(share) == 12 for share in shares), "not of the paths, which have 12 and 4"
    assert shares[0][1] < shares[1][1]


def test_records_are_found_by_folder_name_and_split(folder):
    def read(**fields):
        recipe = tiny.make_config(
            folder,
            **{
                "data__source": "array_record",
                "data__name": "mine",
                "data__data_dir": str(folder / "records"),
                "data__val_split": "val",
                **{f"data__{name}": value for name, value in fields.items()},
            },
        )
        return num_images(recipe)

    assert read() == (12, 4)
    assert read(train_split="val", val_split="train") == (4, 12)
    assert all("'other'" in text for text in read(name="other"))
    assert all("elsewhere" in text for text in read(data_dir=str(folder / "elsewhere")))


def test_the_name_is_in_messages(folder):
    dataset = build.load_dataset(tiny.make_config(folder, data__name="cells"), "train")
    assert dataset.name.startswith("cells")


def test_bad_records_stop_or_are_dropped_up_to_a_share(folder):
    def read(**fields):
        annotations = str(folder / "bad.json")
        return num_images(tiny.make_config(folder, data__train_annotations=annotations, **fields))

    assert "missing.png" in read()[0]
    assert read(data__on_error="skip", data__max_bad_fraction=0.5) == (11, 4)
    assert "missing.png" in read(data__on_error="skip", data__max_bad_fraction=0.01)[0]


def test_unused_classes(folder):
    content = json.loads((folder / "train.json").read_text())
    content["categories"].append({"id": 50, "name": "nobody"})
    (folder / "more.json").write_text(json.dumps(content))
    found = {}
    for word in ("drop", "keep"):
        recipe = tiny.make_config(
            folder,
            data__train_annotations=str(folder / "more.json"),
            data__val_annotations=str(folder / "more.json"),
            data__val_images=str(folder / "train"),
            data__unused_classes=word,
        )
        found[word] = build.load_sets(recipe)
    for part in range(2):
        assert found["keep"][part].class_names == (*found["drop"][part].class_names, "nobody")


def test_exif_orientation(folder):
    def read(exif):
        annotations = str(folder / "turned.json")
        recipe = tiny.make_config(folder, data__train_annotations=annotations, data__exif=exif)
        return outcome(lambda: build.load_dataset(recipe, "train").orientations.tolist()[:2])

    ignored, applied, refused = (read(word) for word in ("ignore", "apply", "error"))
    assert applied == [6, 1] and "turned.jpg" in ignored and "turned.jpg" in refused


def test_limits_of_files(folder):
    assert "max_pixels" in num_images(tiny.make_config(folder, data__max_pixels=100))[0]
    annotations = str(folder / "outside.json")
    for allowed in (False, True):
        recipe = tiny.make_config(
            folder,
            data__train_annotations=annotations,
            data__train_images=str(folder / "val"),
            data__allow_outside=allowed,
        )
        images = num_images(recipe)[0]
        assert images == 11 if allowed else "data.allow_outside" in images


def test_the_index_is_written_where_the_field_says(folder, monkeypatch):
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    where = folder / "indexes"
    num_images(tiny.make_config(folder, data__index_folder=str(where)))
    assert len(list(where.glob("*.npz"))) == 2


def test_empty_images_train_or_not(folder):
    counts = [
        plan_of(tiny.make_config(folder, data__filter_empty=value)).num_records
        for value in (True, False)
    ]
    assert counts == [9, 12]


def test_batch_and_buckets(folder):
    shape, sizes, _, slots = first_batch(
        tiny.make_config(
            folder, data__global_batch=3, data__buckets=((96, 128),), data__max_boxes=7
        )
    )
    assert shape == (3, 96, 128, 3) and len(sizes) == 3 and slots == 7


def test_sizes(folder):
    assert drawn_sides(tiny.make_config(folder, data__short_side=40)) == {40}
    limited = tiny.make_config(folder, data__short_side=40, data__max_long_side=48)
    assert max(max(s) for s in plan_of(limited).step(0).target.tolist()) == 48
    assert drawn_sides(tiny.make_config(folder, data__train_short_sides=(32, 48))) == {32, 48}


def test_image_size_stands_for_sizes_and_buckets(folder):
    recipe = tiny.make_config(folder, data__image_size=128)
    resolved, _ = auto_fields.resolve(recipe, build.load_dataset(recipe, "train"), None)
    assert resolved.data.max_long_side == 128 and resolved.data.buckets != recipe.data.buckets


def test_augmentations_are_those_of_the_plan(folder):
    wanted = ("vertical_flip(0.25)", "color_jitter(0.5)")
    plan = plan_of(tiny.make_config(folder, data__augmentations=wanted))
    assert plan.augmentations.calls == tuple(parse_augmentation(entry) for entry in wanted)


def test_more_objects_than_slots(folder):
    assert "max_boxes" in outcome(lambda: first_batch(tiny.make_config(folder, data__max_boxes=1)))
    kept = first_batch(tiny.make_config(folder, data__max_boxes=1, data__on_overflow="largest"))
    assert max(kept[2]) == 1


def test_workers_and_prefetch(folder, monkeypatch):
    recipe = tiny.make_config(folder, data__num_workers=3, data__prefetch=5)
    assert workers(recipe, monkeypatch) == [(3, 5)]


def test_the_batch_of_an_evaluation(folder):
    recipe = tiny.make_config(folder, eval__batch_size=3)
    with build.eval_batches(recipe, build.load_dataset(recipe, "val")) as batches:
        assert next(batches).image.shape[0] == 3


COVERED = {
    *(f"data.{name}" for name in DATA_PATHS),
    "data.root", "data.val_fraction", "data.source", "data.name", "data.data_dir",
    "data.train_split", "data.val_split", "data.on_error", "data.max_bad_fraction", "data.exif",
    "data.max_pixels", "data.allow_outside", "data.index_folder", "data.filter_empty",
    "data.global_batch", "data.buckets", "data.max_boxes", "data.short_side",
    "data.max_long_side", "data.train_short_sides", "data.image_size", "data.augmentations",
    "data.on_overflow", "data.num_workers", "data.prefetch", "data.unused_classes",
    "eval.batch_size",
}  # fmt: skip
"""Fields of the tests above."""


def test_every_field_says_what_it_is():
    infos = [
        info
        for group in dataclasses.fields(Recipe)
        for info in field_infos(recipe_io.GROUPS[group.name])
    ]
    assert [f"{info.group}.{info.name}" for info in infos] == recipe_io.field_names()
    for info in infos:
        value = getattr(getattr(Recipe(), info.group), info.name)
        assert info.default == value and len(info.description) > 10 and info.type, info
        if isinstance(value, str) and info.choices:
            assert value in info.choices, info


def test_no_field_is_without_a_test_of_its_effect():
    runs = (test_field_runs, test_limits)
    tests = [set(test_field_programs.CASES), COVERED, *(set(module.COVERED) for module in runs)]
    assert sum(len(fields) for fields in tests) == len(set.union(*tests)), "a field stands in two"
    assert set.union(*tests) == set(recipe_io.field_names())
