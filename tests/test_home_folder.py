""" "~" in paths is written out where they enter; names of the hub and of buckets stay."""

import pytest

from atss_jax import cli
from atss_jax.data import sources
from atss_jax.errors import UserError
from atss_jax.run import detector, given_paths, recipe_io
from tests.test_layouts import write_coco

TWO = ("train", "val")
PATHS = [f"{group}.{field}" for group, fields in recipe_io.PATH_FIELDS.items() for field in fields]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", PATHS)
def test_paths_of_a_recipe(home, name):
    group, field = name.split(".")
    for path, wanted in (
        ("~/a", f"{home}/a"),
        ("~", str(home)),
        ("hf://a/b", "hf://a/b"),
        ("gs://a/~", "gs://a/~"),
        ("timm/~", "timm/~"),
        ("", ""),
    ):
        is_list = field == "input"
        recipe = recipe_io.recipe_from_mapping({group: {field: ["b", path] if is_list else path}})
        assert getattr(getattr(recipe, group), field) == (("b", wanted) if is_list else wanted)


def test_what_early_checks_accept_is_read(home):
    write_coco(home / "set")
    for values in (
        {"root": "~/set"},
        {
            **{f"{s}_annotations": f"~/set/annotations/instances_{s}2017.json" for s in TWO},
            **{f"{s}_images": f"~/set/{s}2017" for s in TWO},
        },
    ):
        recipe = recipe_io.recipe_from_mapping({"data": values, "model": {"init_from": ""}})
        given_paths.check(recipe, "train_and_eval", str(home / "run"))
        assert all(sources.load_split(recipe.data, split).num_records for split in TWO)


def test_weights(home):
    (home / "run").mkdir()
    for name in ("~/run", "~/none.npz"):
        recipe = recipe_io.recipe_from_mapping(
            {"data": {"root": "~"}, "model": {"init_from": name}}
        )
        with pytest.raises(UserError, match=f"init_from='{home}/"):
            given_paths.check(recipe, "train", "")
    with pytest.raises(UserError, match=f"{home}/run"):
        detector.Detector.load("~/run")


def test_the_folder_of_a_run(home):
    for flags in (["--workdir=~/a"], ["--workdir", "~/a"], ["-workdir=~/a"]):
        (path,) = {word.split("=")[-1] for word in given_paths.with_home(flags)} - {"--workdir"}
        assert path == f"{home}/a"
    others = ["--workdir=gs://a/~", "--config.predict.input=~/a", "~", "--workdir"]
    assert given_paths.with_home(others) == others


def test_check_and_browse(home, capsys):
    write_coco(home / "set")
    annotations = "--annotations=~/set/annotations/instances_train2017.json"
    for arguments in (["--root=~/set"], [annotations, "--images=~/set/train2017"]):
        assert cli.main(["check", *arguments, "--short_side=64"]) == 0
        assert "images: " in capsys.readouterr().out
    assert cli.main(["check", "--root=~/none"]) == 2
    assert f"{home}/none" in capsys.readouterr().err
