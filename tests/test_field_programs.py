"""Every field of the mathematical groups changes exactly the components that it belongs to.

`tests/test_field_effects.py` has the other groups, and the check that no field is in neither.
"""

import dataclasses
from typing import Any, NamedTuple

import pytest

from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe
from tests import field_programs


class Case(NamedTuple):
    """A second value of a field, and what it changes."""

    value: Any
    changes: str
    """Names of the components, in one text."""
    shows: str = ""
    """A piece of the changed programs that the first ones lack: the value itself, where it is a
    constant of a program."""
    given: dict[str, Any] = {}
    """Other fields that the field needs, "group.field" -> value."""


RESNET50 = {"model.backbone": "resnet50"}
POINT = {"model.regression": "point"}
BINS = {**POINT, "model.side_bins": 4}
QFL = {"loss.cls_loss": "quality_focal"}
VFL = {"loss.cls_loss": "varifocal"}
GAUSSIAN = {"eval.nms": "soft_gaussian"}
TAL = {"assigner.name": "task_aligned"}
IOU = {"assigner.name": "max_iou"}
GRID = "anchor_grid assignment losses post_processing step_constants"

CASES = {
    "model.backbone": Case("resnet34", "network"),
    "model.flavour": Case("torchvision", "network", given=RESNET50),
    "model.backbone_norm": Case("group_norm", "network"),
    "model.width": Case(0.25, "network"),
    "model.stem_channels": Case(24, "network", "24]"),
    "model.frozen_stages": Case(1, "network"),
    "model.dcn_stages": Case((4,), "network", "gather", RESNET50),
    "model.fpn_channels": Case(48, "network", "48]"),
    "model.p6_from": Case("c5", "network"),
    "model.relu_before_p7": Case(False, "network"),
    "model.dynamic_blocks": Case(1, "network"),
    "model.head_convs": Case(2, "network"),
    "model.head_norm": Case("none", "network"),
    "model.head_dcn": Case(True, "network", "gather"),
    "model.level_scale": Case(False, "network"),
    "model.centerness": Case("cls", "network"),
    "model.regression": Case("point", "network losses post_processing"),
    "model.point_activation": Case("exp", "network", given=POINT),
    "model.side_bins": Case(5, "network losses", "6]", given=POINT),
    "model.distribution_quality": Case(True, "network", given=BINS),
    "model.star_refinement": Case(True, "network losses", given=POINT),
    "model.class_prior": Case(0.02, "network", "-3.89"),
    "model.dtype": Case("bfloat16", "network", "bf16"),
    "model.remat": Case("blocks", "network", "remat"),
    "anchors.anchor_scale": Case(6.0, GRID),
    "anchors.scales_per_octave": Case(2, f"{GRID} network"),
    "anchors.aspect_ratios": Case((0.5, 2.0), f"{GRID} network"),
    "anchors.center_offset": Case(0.25, GRID),
    "anchors.offset_px": Case(0.5, GRID),
    "assigner.name": Case("max_iou", "assignment"),
    "assigner.candidates_per_level": Case(7, "assignment", "7"),
    "assigner.num_candidates": Case(11, "assignment", "11", {"assigner.name": "top_k_iou"}),
    "assigner.foreground_iou": Case(0.625, "assignment", "0.625:f32", IOU),
    "assigner.background_iou": Case(0.3125, "assignment", "0.3125:f32", IOU),
    "assigner.center_radius": Case(1.75, "assignment", given={"assigner.name": "spatial_scale"}),
    "assigner.positives_in_box": Case(False, "assignment", given=IOU),
    "assigner.alignment_top_k": Case(17, "assignment", "17", TAL),
    "assigner.alignment_alpha": Case(1.375, "assignment", "1.375:f32", TAL),
    "assigner.alignment_beta": Case(5.125, "assignment", "5.125:f32", TAL),
    "assigner.warmup_steps": Case(41, "assignment step_constants", "41", TAL),
    "loss.box_loss": Case("diou", "losses"),
    "loss.box_loss_weight": Case(2.375, "losses", "2.375:f32"),
    "loss.focal_alpha": Case(0.3125, "losses", "0.3125:f32"),
    "loss.focal_gamma": Case(2.625, "losses", "2.625:f32"),
    "loss.normalizer": Case("retinanet", "losses"),
    "loss.cls_loss": Case("varifocal", "losses"),
    "loss.quality_beta": Case(2.125, "losses", "2.125:f32", QFL),
    "loss.varifocal_alpha": Case(0.6875, "losses", "0.6875:f32", VFL),
    "loss.varifocal_gamma": Case(2.875, "losses", "2.875:f32", VFL),
    "loss.box_weights": Case("iou", "losses"),
    "loss.distribution_loss_weight": Case(0.4375, "losses", "0.4375:f32", BINS),
    "loss.first_box_loss_weight": Case(
        1.625, "losses", "1.625:f32", {**POINT, "model.star_refinement": True}
    ),
    "optim.name": Case("adamw", "optimizer"),
    "optim.learning_rate": Case(0.03125, "optimizer", "0.03125,", {"optim.warmup_steps": 0}),
    "optim.reference_batch": Case(32, "optimizer"),
    "optim.lr_scaling": Case("none", "optimizer", given={"data.global_batch": 32}),
    "optim.schedule": Case("cosine", "optimizer"),
    "optim.num_steps": Case(40, "optimizer"),
    "optim.num_epochs": Case(3.0, "optimizer", given={"optim.num_steps": 0}),
    "optim.decay_at": Case((0.25, 0.5), "optimizer"),
    "optim.decay_factor": Case(0.5, "optimizer"),
    "optim.warmup": Case("linear", "optimizer"),
    "optim.warmup_steps": Case(20, "optimizer"),
    "optim.warmup_factor": Case(0.125, "optimizer", "[0.00124999"),
    "optim.clip_norm": Case(4.75, "optimizer", "4.75:f32"),
    "optim.momentum": Case(0.8125, "optimizer", "0.8125:f32"),
    "optim.weight_decay": Case(0.00390625, "optimizer", "0.00390625"),
    "optim.decay_norms": Case(False, "optimizer"),
    "optim.bias_lr_factor": Case(3.5, "optimizer", "3.5"),
    "optim.bias_weight_decay": Case(0.0078125, "optimizer", "0.0078125"),
    "optim.accumulate": Case(2, "step_constants", "'accumulate': 2"),
    "optim.ema_decay": Case(0.96875, "step_constants", "'ema_decay': 0.96875"),
    "data.mean": Case((1.5, 2.5, 3.5), "step_constants", "(1.5, 2.5, 3.5)"),
    "data.std": Case((4.5, 5.5, 6.5), "step_constants", "(4.5, 5.5, 6.5)"),
    "data.channel_order": Case("rgb", "step_constants", "'rgb'"),
    "eval.score_threshold": Case(0.1875, "post_processing", "0.1875:f32"),
    "eval.pre_nms_top_k": Case(13, "post_processing", "13"),
    "eval.nms_iou": Case(0.6875, "post_processing", "0.6875:f32"),
    "eval.nms": Case("soft_linear", "post_processing"),
    "eval.soft_nms_sigma": Case(0.375, "post_processing", "0.375:f32", GAUSSIAN),
    "eval.soft_nms_min_score": Case(0.09375, "post_processing", "0.09375:f32", GAUSSIAN),
    "eval.max_detections": Case(19, "post_processing", "f32[19,4]"),
    "eval.score": Case("product", "post_processing"),
    "eval.multiscale": Case("flip", "passes"),
}
"""Field -> its second value and its owners."""

SMALL = {
    "model.backbone": "resnet18",
    "model.width": 0.125,
    "model.stem_channels": 16,
    "model.fpn_channels": 32,
    "model.head_convs": 1,
    "eval.pre_nms_top_k": 50,
    "optim.num_steps": 60,
    "optim.num_epochs": 0.0,
    "optim.warmup_steps": 10,
}


def make_recipe(fields: dict[str, Any]) -> Recipe:
    """A small recipe with some fields changed."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in {**SMALL, **fields}.items():
        group, field = name.split(".")
        groups.setdefault(group, {})[field] = value
    changed = {
        group: dataclasses.replace(getattr(Recipe(), group), **values)
        for group, values in groups.items()
    }
    return dataclasses.replace(Recipe(), **changed)


def has_more(after: str, before: str, piece: str) -> bool:
    """Whether a piece of text occurs more often than before; its own function for short errors."""
    return after.count(piece) > before.count(piece)


def marked(name: str) -> Any:
    """A case; those that trace a network or gradients take seconds."""
    is_slow = {"network", "losses"} & set(CASES[name].changes.split())
    return pytest.param(name, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_a_field_changes_its_own_components_and_no_other(name):
    case = CASES[name]
    values = {name: case.value}
    if name == "optim.num_epochs":
        values["optim.num_steps"] = 0
    given = dict(case.given)
    if given.get("optim.num_steps") == 0:
        given["optim.num_epochs"] = 2.0
    group, field = name.split(".")
    base, changed = make_recipe(given), make_recipe({**given, **values})
    assert getattr(getattr(base, group), field) != case.value, "the same value twice"
    differing = []
    for component, describe in field_programs.COMPONENTS.items():
        before, after = describe(base), describe(changed)
        if before != after:
            differing.append(component)
            if case.shows and component in case.changes.split()[:1]:
                assert has_more(after, before, case.shows), (component, case.shows)
    assert sorted(differing) == sorted(case.changes.split())


def test_groups_of_mathematics_are_complete():
    """Fields that need a file, a data set or a run are in test_field_effects.py."""
    elsewhere = {"model.init_from", "eval.batch_size", "eval.backend", "eval.format_only"}
    elsewhere.add("eval.num_pictures")
    groups = ("model", "anchors", "assigner", "loss", "optim", "eval")
    expected = {n for n in recipe_io.field_names() if n.split(".")[0] in groups}
    assert expected - elsewhere == {n for n in CASES if n.split(".")[0] in groups}
