"""What a workdir accepts and refuses: recipes, data, classes, checkpoints; what it then holds."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from atss_jax.configs import quickstart
from atss_jax.errors import MissingFileError, UserError
from atss_jax.run import (
    build,
    classes,
    evaluation_folder,
    given_paths,
    recipe_changes,
    recipe_io,
    train_data,
    validation,
)
from atss_jax.run import workdir_files as files
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import checkpoint_record
from tests import tiny


def changed(config: Recipe, **fields) -> Recipe:
    """A recipe with other values of fields, written "group__field"."""
    values = recipe_io.recipe_to_dict(config)
    for name, value in fields.items():
        group, field = name.split("__")
        values[group][field] = value
    return recipe_io.recipe_from_mapping(values)


BASE = quickstart.recipe()


@pytest.fixture
def workdir(tmp_path):
    """The folder of a run with the quickstart's recipe."""
    folder = epath.Path(tmp_path / "run")
    files.claim_workdir(BASE, folder)
    return folder


@pytest.mark.parametrize(
    ("fields", "training", "elsewhere"),
    [
        ({"optim__learning_rate": 1.0}, False, False),
        ({"optim__num_steps": 900}, True, False),
        ({"optim__num_steps": 700}, False, False),
        ({"optim__num_steps": 0, "optim__num_epochs": 3.0}, False, False),
        ({"optim__accumulate": 2}, False, False),  # the quickstart's batch norm sees the parts
        ({"model__width": 1.0}, False, False),
        ({"model__dtype": "bfloat16"}, False, True),
        ({"model__remat": "blocks"}, True, True),
        ({"model__init_from": "x.npz"}, True, True),
        ({"data__global_batch": 16}, False, True),
        ({"data__buckets": ((160, 160),)}, False, True),
        ({"data__mean": (1.0, 2.0, 3.0)}, False, False),
        ({"data__train_annotations": "elsewhere.json"}, True, True),
        ({"data__val_annotations": "other.json"}, True, True),
        ({"data__num_workers": 2}, True, True),
        ({"run__seed": 3}, False, True),
        ({"run__checkpoint_every": 7, "run__eval_every": 9}, True, True),
        ({"eval__nms_iou": 0.5, "predict__score_threshold": 0.1}, True, True),
        ({"assigner__candidates_per_level": 5}, False, False),
    ],
)
def test_what_may_change(workdir, fields, training, elsewhere):
    """Refused by name, with nothing changed; applied otherwise."""
    config = changed(BASE, **fields)
    before = (workdir / "config.json").read_text()
    for is_training, is_accepted in ((True, training), (False, elsewhere)):
        if is_accepted:
            names = {
                change.name for change in files.check_workdir(config, workdir, training=is_training)
            }
            assert names == {name.replace("__", ".") for name in fields}
        else:
            with pytest.raises(UserError, match=f"config.{next(iter(fields)).replace('__', '.')}"):
                files.check_workdir(config, workdir, training=is_training)
    assert (workdir / "config.json").read_text() == before
    assert not (workdir / "config_history.jsonl").exists()


def test_the_batch_may_be_split_otherwise_where_no_statistics_depend_on_it():
    config = changed(BASE, model__backbone_norm="frozen_bn")
    assert not recipe_changes.locked_changes(
        config, changed(config, optim__accumulate=2), training=True
    )


def test_changes_are_applied_and_noted(workdir, capsys):
    files.claim_workdir(BASE, workdir)
    assert not (workdir / "config_history.jsonl").exists()
    for every in (7, 9):
        files.claim_workdir(changed(BASE, run__checkpoint_every=every), workdir)
    assert files.read_config(workdir).run.checkpoint_every == 9
    rows = [
        json.loads(line) for line in (workdir / "config_history.jsonl").read_text().splitlines()
    ]
    assert [row["changes"] for row in rows] == [
        {"run.checkpoint_every": [100, 7]},
        {"run.checkpoint_every": [7, 9]},
    ]
    assert "config.run.checkpoint_every: 7 -> 9" in capsys.readouterr().err


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    tiny.make_coco(folder)
    return folder


def load(folder, edit=None):
    """The training set in a folder, after an edit of its annotations."""
    path = folder / "train.json"
    content = json.loads(path.read_text())
    if edit is not None:
        edit(content)
        path = folder / "edited.json"
        path.write_text(json.dumps(content))
    config = changed(tiny.make_config(folder), data__train_annotations=str(path))
    return build.load_dataset(config, "train")


def exported_again(content):
    """The same objects under other ids, so that the order of the classes is reversed."""
    count = len(content["categories"])
    for entry in content["categories"]:
        entry["id"] = count + 1 - entry["id"]
    for entry in content["annotations"]:
        entry["category_id"] = count + 1 - entry["category_id"]


def test_data_are_compared_by_content(coco, workdir):
    train_data.write(workdir, load(coco))
    before = (workdir / "train_data.json").read_text()
    train_data.check(workdir, load(coco, lambda content: content["images"].reverse()))

    def other_box(content):
        content["annotations"][0]["bbox"][2] -= 1

    def other_id(content):
        content["images"][3]["id"] = 99

    def fewer(content):
        content["annotations"].pop()

    for edit, message in (
        (other_box, "other boxes and labels"),
        (other_id, "other image ids"),
        (fewer, "boxes there"),
        (exported_again, "other classes"),
    ):
        with pytest.raises(UserError, match=message):
            train_data.check(workdir, load(coco, edit))
    assert (workdir / "train_data.json").read_text() == before


def test_classes_are_mapped_by_name_where_only_the_order_differs(coco, caplog):
    original, other = load(coco), load(coco, exported_again)
    assert other.class_names == original.class_names[::-1]
    mapped = classes.in_order_of(other, original.class_names, "the run")
    assert "another order" in caplog.text
    assert mapped.class_names == original.class_names
    assert mapped.category_ids == other.category_ids[::-1]
    for record in range(original.num_records):
        np.testing.assert_array_equal(mapped.labels(record), original.labels(record))
        np.testing.assert_array_equal(mapped.boxes(record), original.boxes(record))
    renamed = dataclasses.replace(other, class_names=("a", *other.class_names[1:]))
    with pytest.raises(UserError, match=r"the classes of the run and .* differ: \[.*'a'"):
        classes.in_order_of(renamed, original.class_names, "the run")


def test_classes_without_a_box_are_left_out(coco, caplog):
    """Ids and labels of the others stay right, whatever the order; a class with boxes stays."""

    def with_roots(content):
        content["categories"] = [
            {"id": 0, "name": "root"}, *content["categories"], {"id": 99, "name": "leaf"}
        ]  # fmt: skip

    plain, listed = load(coco), load(coco, with_roots)
    dropped = classes.without_unused(listed, listed)
    assert dropped.dropped_classes == ("root", "leaf")
    mapped = classes.in_order_of(load(coco, with_roots), plain.class_names[::-1], "the run")
    assert "no box has the class root, leaf: left out" in caplog.text
    for found, names in ((dropped, plain.class_names), (mapped, plain.class_names[::-1])):
        assert found.class_names == names
        assert dict(zip(found.class_names, found.category_ids, strict=True)) == dict(
            zip(plain.class_names, plain.category_ids, strict=True)
        )
        for record in range(plain.num_records):
            there = [plain.class_names[label] for label in plain.labels(record)]
            assert [found.class_names[label] for label in found.labels(record)] == there
        order = [plain.class_names.index(name) for name in names]
        assert found.class_counts().tolist() == plain.class_counts()[order].tolist()
    kept = classes.without_unused(listed, listed, keep=("leaf",))
    assert kept.class_names == (*plain.class_names, "leaf")
    assert classes.without_unused(plain, plain) is plain
    with pytest.raises(ValueError, match="annotations have the classes"):
        plain.with_classes(plain.class_names[:1])


def test_a_checkpoint_is_chosen(tmp_path):
    folder = epath.Path(tmp_path)
    assert checkpoint_record.chosen_steps(folder, [2, 4, 6], "last") == [2, 4, 6]
    assert checkpoint_record.chosen_steps(folder, [2, 4, 6], "4") == [4]
    for which in ("5", "newest", "-1"):
        with pytest.raises(UserError, match=r"one of the steps 2, 4, 6"):
            checkpoint_record.chosen_steps(folder, [2, 4, 6], which)
    with pytest.raises(UserError, match="evaluated none"):
        checkpoint_record.chosen_steps(folder, [2, 4, 6], "best")
    for step, ap in ((2, 0.5), (4, 0.7), (6, 0.6)):
        checkpoint_record.write_record(folder, step, {"metrics": {"AP": ap}, "run": {}})
    assert checkpoint_record.chosen_steps(folder, [2, 4, 6], "best") == [4]
    assert checkpoint_record.chosen_steps(folder, [2, 6], "best") == [6]


def test_each_evaluation_has_a_folder(tmp_path):
    base = changed(BASE, data__source="coco_json", data__val_annotations="a/instances_val2017.json")
    workdir = epath.Path(tmp_path)

    def choose(config, step=6):
        folder = evaluation_folder.choose_folder(config, workdir, step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(recipe_io.recipe_to_json(config))
        return folder.name

    assert choose(base) == choose(base) == "val2017-6-none"
    assert choose(base, 8) == "val2017-8-none"
    assert choose(changed(base, eval__multiscale="flip")) == "val2017-6-flip"
    for _ in range(2):
        assert choose(changed(base, eval__nms_iou=0.5)) == "val2017-6-none-2"
    other = changed(base, data__val_annotations="b/instances_val2017.json")
    assert choose(other) == "val2017-6-none-3"
    test_dev = changed(base, data__val_annotations="image_info_test-dev2017.json")
    assert choose(test_dev) == "test-dev2017-6-none"
    assert choose(BASE) == "validation-6-none"


@pytest.mark.parametrize("source", ["tfds", "array_record", "coco_json"])
def test_an_evaluation_reads_the_files_that_it_names(source):
    run = dataclasses.replace(BASE.data, source=source)
    assert validation.evaluated_data(run, {"eval.batch_size"}) == run
    named = dataclasses.replace(run, val_annotations="new.json", val_images="new")
    read = validation.evaluated_data(named, {"data.val_annotations", "data.val_images"})
    assert read == dataclasses.replace(named, source="coco_json")


def test_what_the_run_chose_stands_where_a_command_says_auto():
    chosen = changed(BASE, data__image_size=160, data__max_boxes=7, data__global_batch=8)
    automatic = Recipe(data=dataclasses.replace(Recipe().data, image_size=0, global_batch=0))
    data = recipe_changes.with_chosen(automatic, chosen).data
    assert (data.image_size, data.global_batch, data.max_boxes) == (160, 8, 100)
    assert (data.buckets, data.short_side) == (BASE.data.buckets, BASE.data.short_side)
    own = changed(chosen, data__buckets=((96, 96),))
    assert recipe_changes.with_chosen(own, chosen) == own


def test_weights_are_looked_for_at_the_first_start_only(tmp_path):
    """A resumed run reads its checkpoint, also where the weight file is not."""
    config = changed(BASE, model__init_from=str(tmp_path / "gone.npz"))
    with pytest.raises(MissingFileError, match="no such file"):
        given_paths.check(config, "train", str(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    given_paths.check(config, "train", str(tmp_path / "run"))


def test_a_damaged_result_is_named_and_a_missing_one_is_empty(tmp_path):
    path = epath.Path(tmp_path / "result.json")
    assert files.read_result(path) == {}
    path.write_text('{"steps": 3}')
    assert files.read_result(path) == {"steps": 3}
    for text in ("", '{"steps": ', "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"result.json: damaged .*repeat the command"):
            files.read_result(path)
