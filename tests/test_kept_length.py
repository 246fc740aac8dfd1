"""A run that is started again without a length keeps its own."""

import dataclasses

import pytest

from atss_jax import main
from atss_jax.run import kept_length, recipe_files, recipe_io


def packaged(name: str = "coco_json"):
    """A packaged recipe."""
    return recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())


@pytest.fixture
def workdir(tmp_path):
    """A folder whose run has 3 epochs."""
    recipe = packaged()
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, num_epochs=3.0))
    (tmp_path / "config.json").write_text(recipe_io.recipe_to_json(recipe))
    return tmp_path


def test_the_length_of_the_run_is_kept_and_said(workdir):
    fields, text = kept_length.of_run(packaged(), "coco_json", workdir, {"data.root"})
    assert fields == {"optim.num_epochs": 3.0}
    assert "keeps its length of 3 epoch(s) (coco_json has 26 epoch(s))" in text


@pytest.mark.parametrize("given", ["optim.num_epochs", "optim.num_steps"])
def test_a_length_that_is_given_counts(workdir, given):
    assert kept_length.of_run(packaged(), "coco_json", workdir, {given}) == ({}, "")


def test_a_recipe_that_says_its_length_counts(workdir, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text((recipe_files.PACKAGED / "coco_json.py").read_text())
    for name in (str(file), "coco_json:random"):
        assert kept_length.of_run(packaged(), name, workdir, ()) == ({}, "")


def test_a_new_run_has_the_length_of_the_recipe(tmp_path):
    assert kept_length.of_run(packaged(), "coco_json", tmp_path, ()) == ({}, "")


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        ("--mode=train_and_eval", 3),
        ("", 3),
        ("--config.optim.num_epochs=5", 26),  # the flag itself is read later
        ("--config.optim.num_epochs 5", 26),
        ("--mode=describe", 26),
    ],
)
def test_the_command_line_keeps_it_when_training(workdir, flags, epochs, capsys):
    arguments = [f"--workdir={workdir}", *flags.split()]
    config = main._find_config("coco_json", arguments)
    assert config is not None and config.to_dict()["optim"]["num_epochs"] == epochs
    assert ("keeps its length" in capsys.readouterr().err) == (epochs == 3)
