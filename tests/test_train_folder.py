"""Training from Python."""

import json

import pytest

import atss_jax
from atss_jax.errors import UserError
from atss_jax.run import train_folder
from tests import tiny


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """The recipe and folder that the training gets."""
    calls = []

    def record(recipe, workdir, *, with_evaluation):
        assert with_evaluation
        calls.append((recipe, workdir))
        workdir.mkdir(parents=True)
        (workdir / "result.json").write_text(json.dumps({"metrics": {"AP": 0.5}}))

    monkeypatch.setattr(train_folder, "train_recipe", record)
    monkeypatch.chdir(tmp_path)
    return calls


def test_arguments_become_fields(recorded):
    run = atss_jax.train("my photos", epochs=3, batch_size=0, fields={"run.seed": 4})
    (recipe, workdir), data = recorded[0], recorded[0][0].data
    assert (data.root, data.image_size, data.max_boxes, data.global_batch) == ("my photos", 0, 0, 0)
    assert (recipe.optim.num_epochs, recipe.optim.num_steps, recipe.run.seed) == (3.0, 0, 4)
    assert str(workdir) == str(run.workdir) == "workdirs/my-photos"
    assert run.metrics == {"AP": 0.5} and run.rows() == [] and run._repr_png_() is None


def test_sizes_that_are_given_are_not_chosen_from_the_data(recorded):
    sizes = {"data.short_side": 480, "data.max_long_side": 640, "data.buckets": ((480, 640),)}
    atss_jax.train("photos", workdir="a", fields=sizes)
    data = recorded[0][0].data
    assert (data.image_size, data.short_side, data.buckets) == (-1, 480, ((480, 640),))
    atss_jax.train("photos", workdir="b", fields={"data.train_short_sides": (200, 240)})
    assert recorded[1][0].data.image_size == -1
    with pytest.raises(UserError, match="are both given"):
        atss_jax.train("photos", image_size=640, fields=sizes)


def test_the_home_folder(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    atss_jax.train("~/photos", workdir="~/runs/a")
    recipe, workdir = recorded[0]
    assert recipe.data.root == f"{tmp_path}/photos" and str(workdir) == f"{tmp_path}/runs/a"


def test_a_recipe_that_brings_its_data(recorded):
    atss_jax.train(config="quickstart", image_size=96, workdir="w")
    recipe, workdir = recorded[0]
    assert recipe.data.root == "" and recipe.data.image_size == 96 and str(workdir) == "w"
    assert recipe.data.max_boxes > 0


def test_unknown_fields_are_refused(recorded):
    with pytest.raises(UserError, match=r"Did you mean config.optim.learning_rate\?"):
        atss_jax.train("x", fields={"optim.lr": 1})
    assert not recorded


@pytest.mark.slow
def test_a_folder_becomes_a_detector(tmp_path):
    tiny.make_coco(tmp_path)
    tiny.make_coco(tmp_path, 6, "val")
    fields = {
        f"{g}.{f}": v for g, given in tiny.overrides(tmp_path).items() for f, v in given.items()
    }
    run = atss_jax.train(config="quickstart", workdir=tmp_path / "run", fields=fields)
    assert 0 <= (run.metrics["AP"] or 0) <= 1
    assert [row["step"] for row in run.rows() if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (run._repr_png_() or b"")[:4] == b"\x89PNG"
    found = run.detector()(tmp_path / "val" / "0.png")
    assert len(found.boxes) == len(found.scores)
    again = atss_jax.train(config="quickstart", workdir=tmp_path / "run", fields=fields)
    assert again.result == run.result  # nothing was left to do
    (tmp_path / "run" / "result.json").write_text("")
    mended = atss_jax.train(config="quickstart", workdir=tmp_path / "run", fields=fields)
    assert mended.metrics == run.metrics and mended.result["steps"] == run.result["steps"]
