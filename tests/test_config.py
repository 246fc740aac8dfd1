"""Recipes build, and every typo is caught with the right suggestion."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

from atss_jax import main
from atss_jax.configs import (
    ablations,
    atss_r50_fpn_1x,
    coco_json,
    common,
    fcos_r50_fpn_1x,
    paper_table8,
    quickstart,
    retinanet_r50_fpn_1x,
)
from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [
    ablations,
    atss_r50_fpn_1x,
    coco_json,
    fcos_r50_fpn_1x,
    paper_table8,
    quickstart,
    retinanet_r50_fpn_1x,
]

ARGUMENT_VALUES = {
    ablations: {
        "head_norm=none": ("model.head_norm", "none"),
        "box_loss=smooth_l1": ("loss.box_loss_weight", 1.0),
        "assigner=iou,positives_in_box=false": ("assigner.positives_in_box", False),
        "centerness=false": ("loss.normalizer", "retinanet"),
        "level_scale=false": ("model.level_scale", False),
        "assigner=iou": ("assigner.name", "max_iou"),
        "assigner=spatial_scale": ("assigner.center_radius", 0.0),
        "assigner=center_sampling": ("assigner.center_radius", 1.5),
        "assigner=atss": ("assigner.name", "atss"),
        "regression=point": ("model.regression", "point"),
        "k=15": ("assigner.candidates_per_level", 15),
        "anchor_scale=5": ("anchors.anchor_scale", 5.0),
        "aspect_ratio=0.25": ("anchors.aspect_ratios", (0.25,)),
        "num_scales=3": ("anchors.scales_per_octave", 3),
        "num_ratios=3": ("anchors.aspect_ratios", (0.5, 1.0, 2.0)),
    },
    paper_table8: {
        "backbone=r50": ("model.flavour", "msra"),
        "backbone=r101": ("model.backbone", "resnet101"),
        "backbone=x101_32x8d": ("model.flavour", "torchvision"),
        "backbone=x101_64x4d": ("model.backbone", "resnext101_64x4d"),
        "dcn": ("model.dcn_stages", (3, 4, 5)),
        "dcn,backbone=x101_32x8d": ("model.dcn_stages", (4, 5)),
        "schedule=1x": ("optim.num_steps", 90_000),
        "schedule=2x": ("optim.num_steps", 180_000),
        "multiscale=false": ("data.train_short_sides", ()),
        "multiscale": ("data.train_short_sides", tuple(range(640, 801))),
    },
    fcos_r50_fpn_1x: {
        "improved": ("loss.box_loss", "fcos_giou"),
        "improved=false": ("model.centerness", "cls"),
    },
}
"""Recipe -> argument -> a field that it sets, and to what."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
def test_recipe_fits_the_schema_and_survives_json(recipe):
    config = recipe_io.recipe_from_mapping(recipe.get_config().to_dict())
    assert recipe_io.recipe_from_json(recipe_io.recipe_to_json(config)) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.__name__)
def test_recipe_rejects_unknown_argument(recipe):
    with pytest.raises(ValueError, match="nonsense"):
        recipe.get_config("nonsense=1")


@pytest.mark.parametrize(
    ("recipe", "argument"),
    [(recipe, argument) for recipe, values in ARGUMENT_VALUES.items() for argument in values],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_value_of_an_argument_builds_and_sets_its_field(recipe, argument):
    config = recipe_io.recipe_from_mapping(recipe.get_config(argument).to_dict())
    field, expected = ARGUMENT_VALUES[recipe][argument]
    group, name = field.split(".")
    assert getattr(getattr(config, group), name) == expected


@pytest.mark.parametrize("recipe", ARGUMENT_VALUES, ids=lambda r: r.__name__)
def test_every_declared_argument_is_documented_and_tested(recipe):
    tested = {part.split("=")[0] for text in ARGUMENT_VALUES[recipe] for part in text.split(",")}
    assert tested == set(recipe.ARGUMENTS)
    for name in recipe.ARGUMENTS:
        assert name in recipe.recipe.__doc__


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("positives_in_box=false", "Use assigner=iou"),
        ("k=5,assigner=iou", "assigner=iou does not read it"),
        ("regression=point,num_ratios=3", "a point has one box"),
        ("aspect_ratio=2,num_ratios=3", "Give one of the two"),
        ("k=0", "use 1 or more"),
        ("anchor_scale=0", "use positive numbers"),
        ("num_ratios=2", "num_ratios='2': use one of 1, 3"),
        ("assigner=fcos", "use one of iou, spatial_scale, center_sampling, atss"),
        ("asigner=iou", "Did you mean 'assigner'"),
    ],
)
def test_ablation_arguments_that_do_not_go_together_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        ablations.get_config(argument)


def test_largest_draw_of_multiscale_training_fits_the_buckets():
    data = recipe_io.recipe_from_mapping(paper_table8.get_config().to_dict()).data
    short, long = max(data.train_short_sides), data.max_long_side
    assert any(h >= short and w >= long for h, w in data.buckets)
    assert any(h >= long and w >= short for h, w in data.buckets)


def one_edit_typos(word):
    """A deletion, a swap, a substitution and an insertion at each place."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        if i + 1 < len(word) and word[i] != word[i + 1]:
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        yield word[:i] + ("q" if word[i] != "q" else "z") + word[i + 1 :]
        yield word[:i] + "q" + word[i:]


@pytest.mark.parametrize("name", recipe_io.field_names())
def test_every_one_edit_typo_of_a_field_is_rejected_with_its_name(name):
    group, field = name.split(".")
    known = recipe_io.field_names()
    for typo in one_edit_typos(field):
        if not typo or f"{group}.{typo}" in known:
            continue
        message = main.check_flag_names([f"--config.{group}.{typo}=1"])
        assert message and f"config.{group}.{typo}: no such field" in message
        assert f"Did you mean config.{name}?" in message, (typo, message)


@pytest.mark.parametrize("group", typing.get_type_hints(Recipe))
def test_typo_of_a_group_names_the_group(group):
    for typo in one_edit_typos(group):
        message = main.check_flag_names([f"--config.{typo}.anything=1"])
        assert message and "no such field" in message
        if typo:
            values = {typo: {}}
            with pytest.raises(ValueError, match=f"Did you mean config.{group}"):
                recipe_io.recipe_from_mapping(values)


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
        "error: config.optim.learning_rat: no such field. Did you mean config.optim.learning_rate?"
    )


def test_main_imports_no_jax_before_the_flags_are_checked():
    code = "import sys, atss_jax.main; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_missing_field_has_its_default_and_a_wrong_type_is_refused():
    values = quickstart.get_config().to_dict()
    values["optim"]["num_steps"] = "many"
    with pytest.raises(ValueError, match="config.optim.num_steps='many': must be int"):
        recipe_io.recipe_from_mapping(values)
    values = quickstart.get_config().to_dict()
    del values["model"]["width"]
    assert recipe_io.recipe_from_mapping(values).model.width == 1.0
    values = quickstart.get_config().to_dict()
    values["data"]["prefetchh"] = 3
    with pytest.raises(ValueError, match="Did you mean config.data.prefetch?"):
        recipe_io.recipe_from_mapping(values)


def test_integers_pass_for_floats_and_lists_for_tuples():
    values = quickstart.get_config().to_dict()
    values["model"]["width"] = 1
    values["data"]["buckets"] = [[128, 160]]
    checked = recipe_io.recipe_from_mapping(values)
    assert checked.model.width == 1.0 and checked.data.buckets == ((128, 160),)


def test_parse_arg():
    assert common.parse_arg("", k=9) == {"k": 9}
    assert common.parse_arg("ratios=0.5+1", ratios=(1.0,)) == {"ratios": (0.5, 1.0)}
    with pytest.raises(ValueError, match="Did you mean 'backbone'"):
        common.parse_arg("bakbone=r50", backbone="r101")
    with pytest.raises(ValueError, match="expected int"):
        common.parse_arg("k=many", k=9)


def test_the_former_augmentation_fields_are_read_and_named():
    former = {"flip": 0.25, "scale_crop": [0.5, 2.0], "color_jitter": 0.2}
    upgraded = recipe_io.recipe_from_mapping({"data": former}).data.augmentations
    assert upgraded == ("flip(0.25)", "scale_crop(0.5, 2.0)", "color_jitter(0.2)")
    plain = {"flip": 0.0, "scale_crop": [], "color_jitter": 0.0}
    assert recipe_io.recipe_from_mapping({"data": plain}).data.augmentations == ()
    with pytest.raises(ValueError, match="config.data.flip: no such field. It is an entry of"):
        recipe_io.recipe_from_mapping({"data": {"flip": 0.5, "augmentations": []}})
    message = recipe_io.unknown_field_message("data.color_jitter")
    assert message.endswith("such as 'color_jitter(0.2)'")
