"""Recipes build, every typo is caught with the right suggestion, every field is read."""

import ast
import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from atss_jax import config as config_lib
from atss_jax import main
from configs import atss_r50_fpn_1x, coco_json, common, quickstart

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [atss_r50_fpn_1x, coco_json, quickstart]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
def test_recipe_fits_the_schema_and_survives_json(recipe):
    config = config_lib.check_config(recipe.get_config().to_dict())
    assert config_lib.config_from_json(config_lib.config_to_json(config)) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
def test_recipe_rejects_unknown_argument(recipe):
    with pytest.raises(ValueError, match="nonsense"):
        recipe.get_config("nonsense=1")


def one_edit_typos(word):
    """A deletion, a swap, a substitution and an insertion at each place."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        if i + 1 < len(word) and word[i] != word[i + 1]:
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        yield word[:i] + ("q" if word[i] != "q" else "z") + word[i + 1 :]
        yield word[:i] + "q" + word[i:]


@pytest.mark.parametrize("name", config_lib.field_names())
def test_every_one_edit_typo_of_a_field_is_rejected_with_its_name(name):
    group, field = name.split(".")
    known = config_lib.field_names()
    for typo in one_edit_typos(field):
        if not typo or f"{group}.{typo}" in known:
            continue
        message = main.check_flag_names([f"--config.{group}.{typo}=1"])
        assert message and f"config.{group}.{typo}: no such field" in message
        assert f"Did you mean config.{name}?" in message, (typo, message)


@pytest.mark.parametrize("group", typing.get_type_hints(config_lib.Config))
def test_typo_of_a_group_names_the_group(group):
    for typo in one_edit_typos(group):
        message = main.check_flag_names([f"--config.{typo}.anything=1"])
        assert message and "no such field" in message
        if typo:
            values = {typo: {}}
            with pytest.raises(ValueError, match=f"Did you mean config.{group}"):
                config_lib.check_config(values)


def test_unknown_flag_names_the_nearest():
    assert "--workdir" in (main.check_flag_names(["--wrkdir=x"]) or "")
    assert main.check_flag_names(["--workdir=x", "--config=configs/a.py", "--mode=eval"]) is None


def test_typo_on_the_command_line_is_fast_and_touches_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "atss_jax.main", "--config=configs/quickstart.py"]
        + ["--config.optim.learning_rat=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: config.optim.learning_rat: no such field. "
        "Did you mean config.optim.learning_rate?"
    )


def test_main_imports_no_jax_before_the_flags_are_checked():
    code = "import sys, atss_jax.main; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_missing_and_mistyped_fields():
    values = quickstart.get_config().to_dict()
    values["optim"]["num_steps"] = "many"
    with pytest.raises(ValueError, match="config.optim.num_steps='many': must be int"):
        config_lib.check_config(values)
    values = quickstart.get_config().to_dict()
    del values["model"]["width"]
    with pytest.raises(ValueError, match="config.model.width: missing"):
        config_lib.check_config(values)
    values = quickstart.get_config().to_dict()
    values["data"]["flipp"] = 0.5
    with pytest.raises(ValueError, match="Did you mean config.data.flip?"):
        config_lib.check_config(values)


def test_integers_pass_for_floats_and_lists_for_tuples():
    values = quickstart.get_config().to_dict()
    values["model"]["width"] = 1
    values["data"]["buckets"] = [[128, 160]]
    checked = config_lib.check_config(values)
    assert checked.model.width == 1.0 and checked.data.buckets == ((128, 160),)


def test_differences_ignore_what_does_not_change_numbers():
    config = config_lib.check_config(quickstart.get_config().to_dict())
    other = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, log_every=3),
        optim=dataclasses.replace(config.optim, learning_rate=1.0),
        eval=dataclasses.replace(config.eval, nms_iou=0.5),
    )
    assert config_lib.config_differences(config, other, training=True) == [
        "  config.optim.learning_rate: 0.02 -> 1.0",
        "  config.eval.nms_iou: 0.6 -> 0.5",
    ]
    assert len(config_lib.config_differences(config, other, training=False)) == 1


def test_every_field_is_read_somewhere():
    """A field that nobody reads is an error: each is an attribute access in the package."""
    read = set()
    for path in (ROOT / "atss_jax").rglob("*.py"):
        if path.name == "config.py":
            continue
        tree = ast.parse(path.read_text())
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        read |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    dynamic = {f"{s}_{k}" for s in ("train", "val") for k in ("annotations", "images", "split")}
    unread = [n for n in config_lib.field_names() if n.split(".")[1] not in read | dynamic]
    assert not unread, unread


def test_parse_arg():
    assert common.parse_arg("", k=9) == {"k": 9}
    assert common.parse_arg("ratios=0.5+1", ratios=(1.0,)) == {"ratios": (0.5, 1.0)}
    with pytest.raises(ValueError, match="Did you mean 'backbone'"):
        common.parse_arg("bakbone=r50", backbone="r101")
    with pytest.raises(ValueError, match="expected int"):
        common.parse_arg("k=many", k=9)
