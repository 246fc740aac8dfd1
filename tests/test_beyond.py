"""Recipes after the paper: what each name changes; each trains, evaluates and exports, small."""

import numpy as np
import pytest
from etils import epath

from atss_jax.configs import beyond
from atss_jax.errors import UserError
from atss_jax.run import export, recipe_io, train
from atss_jax.run.detector import Detector
from atss_jax.run.recipe import Recipe
from atss_jax.runtime.metric_writer import read_rows
from tests import tiny

FIELDS = {
    "qfl": {"model.centerness", "loss.cls_loss", "loss.box_weights", "eval.score"},
    "dfl": {"model.regression", "model.side_bins"},
    "dgqp": {"model.distribution_quality"},
    "vfl": {"model.centerness", "loss.cls_loss", "loss.box_weights", "eval.score"},
    "star": {"model.regression", "model.point_activation", "model.star_refinement"},
    "dynamic": {"model.dynamic_blocks", "model.head_convs"},
    "tal": {"assigner.name", "assigner.warmup_steps"},
    "r50_v2": {
        *("model.flavour", "model.backbone_norm", "model.frozen_stages", "model.init_from"),
        *("data.train_short_sides", "data.mean", "data.std", "data.channel_order"),
        *("optim.name", "optim.learning_rate", "optim.num_steps", "optim.num_epochs"),
        *("optim.decay_at", "optim.warmup", "optim.warmup_steps", "optim.warmup_factor"),
        *("optim.weight_decay", "optim.decay_norms", "optim.bias_lr_factor"),
    },
    "lsj": {"data.augmentations"},
}
"""Part -> the fields that it changes."""


def changes(recipe: Recipe) -> dict[str, object]:
    """Fields of a recipe that are not the base recipe's."""
    base = recipe_io.recipe_to_dict(Recipe())
    values = recipe_io.recipe_to_dict(recipe)
    return {
        f"{group}.{name}": value
        for group, fields in values.items()
        for name, value in fields.items()
        if value != base[group][name]
    }


@pytest.mark.parametrize("part", beyond.PARTS)
def test_a_part_changes_its_own_fields(part):
    needed = beyond.NEEDS.get(part)
    expected = FIELDS[part] | (FIELDS[needed] if needed else set())
    assert changes(beyond.recipe(f"{part},{needed}" if needed else part)).keys() == expected


VALUES = {
    "qfl": {"loss.cls_loss": "quality_focal", "loss.box_weights": "score", "eval.score": "cls"},
    "dfl": {"model.regression": "point", "model.side_bins": 16},
    "dgqp": {"model.distribution_quality": True},
    "vfl": {"loss.cls_loss": "varifocal", "loss.box_weights": "iou", "eval.score": "cls"},
    "star": {"model.regression": "point", "model.point_activation": "exp"},
    "dynamic": {"model.dynamic_blocks": 6, "model.head_convs": 0},
    "tal": {"assigner.name": "task_aligned", "assigner.warmup_steps": 30_000},
    "r50_v2": {  # torchvision's reference script, as it trained retinanet_resnet50_fpn_v2
        **{"optim.name": "adamw", "optim.learning_rate": 1e-4, "optim.weight_decay": 0.05},
        **{"optim.num_epochs": 26, "optim.num_steps": 0, "optim.decay_at": (16 / 26, 22 / 26)},
        **{"optim.warmup": "linear", "optim.warmup_steps": 1000, "optim.warmup_factor": 0.001},
        **{"optim.decay_norms": False, "optim.bias_lr_factor": 1.0, "model.frozen_stages": 0},
        **{"model.backbone_norm": "batch_norm", "model.init_from": "timm/resnet50.tv_in1k"},
        "data.train_short_sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        **{"data.mean": (123.675, 116.28, 103.53), "data.std": (58.395, 57.12, 57.375)},
        **{"data.channel_order": "rgb", "model.flavour": "torchvision"},
    },
    "lsj": {"data.augmentations": ("flip(0.5)", "scale_crop(0.1, 2.0)")},
}
"""Part -> values that its source has."""


@pytest.mark.parametrize("part", beyond.PARTS)
def test_a_part_has_the_values_of_its_source(part):
    needed = beyond.NEEDS.get(part)
    found = changes(beyond.recipe(f"{part},{needed}" if needed else part))
    assert {name: _tuples(found[name]) for name in VALUES[part]} == VALUES[part]


def _tuples(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def test_constants_of_the_losses_are_those_of_the_papers():
    loss = Recipe().loss
    assert (loss.quality_beta, loss.distribution_loss_weight) == (2.0, 0.25)
    assert (loss.varifocal_alpha, loss.varifocal_gamma, loss.first_box_loss_weight) == (
        *(0.75, 2.0),
        1.5,
    )


@pytest.mark.parametrize("method", beyond.METHODS)
def test_a_method_is_its_parts(method):
    parts = beyond.METHODS[method]
    assert beyond.recipe(method) == beyond.recipe(",".join(parts))
    assert changes(beyond.recipe(method)).keys() == set().union(*(FIELDS[p] for p in parts))


def test_without_a_name_it_is_the_paper():
    assert beyond.recipe() == Recipe()


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="Did you mean 'gfl'"):
        beyond.recipe("gfll")


@pytest.mark.parametrize(
    ("arg", "message"),
    [("gfl,vfl", "qfl and vfl exclude"), ("dfl,star", "exclude"), ("dgqp", "Add dfl")],
)
def test_parts_that_do_not_go_together_are_refused(arg, message):
    with pytest.raises(UserError, match=message):
        beyond.recipe(arg)


def tiny_version(name: str, folder, **more: object) -> Recipe:
    """A recipe's own fields, but for the large ones, on the tiny run."""
    small = {"optim.num_steps": 2, "optim.num_epochs": 0, "model.init_from": ""}
    small |= {"eval.num_pictures": 0, "eval.score_threshold": 0.0}
    if name == "tal":
        small["assigner.warmup_steps"] = 1
    fields = {
        field: value
        for field, value in changes(beyond.recipe(name)).items()
        if field == "data.augmentations" or not field.startswith("data.")
    }
    fields = {**fields, **small, **more}
    return tiny.make_config(folder, **{k.replace(".", "__"): v for k, v in fields.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", [*beyond.PARTS, *beyond.METHODS])
def test_it_trains_evaluates_and_exports(name, folder, one_device, tmp_path):
    config = tiny_version(f"{name},{beyond.NEEDS[name]}" if name in beyond.NEEDS else name, folder)
    workdir = epath.Path(tmp_path)
    result = train.train(config, workdir, with_evaluation=True)
    assert 0 <= result["metrics"]["AP"] <= 1
    losses = [row["loss"] for row in read_rows(workdir / "metrics.jsonl") if "loss" in row]
    assert losses and np.all(np.isfinite(losses))
    detector = Detector.load(workdir)
    exported = export.export_workdir(config, workdir)
    assert list(exported.glob("*.stablehlo"))
    image = next((folder / "val").glob("*.png"))
    assert np.all(np.isfinite(detector(image).boxes))
