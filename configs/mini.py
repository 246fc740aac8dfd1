r"""Any recipe in miniature: the same comparison on drawn objects, in a minute or two of a CPU core.

    python -m atss_jax.main --config=configs/mini.py:ablations:k=15 --workdir=workdirs/mini_k15

What follows the first colon is another packaged recipe with its argument. What that recipe changes
in the paper's base recipe stays changed (assigner, anchors, head, loss, backbone, test-time
settings); data, widths, schedule and optimizer are small. `scripts/paper_rows.py` runs the paper's
tables this way.

What it is not: it is no COCO, and its AP says nothing about COCO's. A network of a fortieth of the
parameters is trained from random numbers for 500 steps of four drawn images of one class
(`shapes_crowded`), with objects of 6 to 192 px where COCO's go to 800 and anchors and strides as in
the paper. It answers whether an effect of the paper shows there, not how large it is elsewhere.
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from atss_jax.configs import common
from atss_jax.errors import UserError
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.recipe import Recipe

NUM_STEPS = 500
"""Of a recipe with the paper's 90,000; others in proportion."""

ALWAYS: dict[str, dict[str, Any]] = {
    "data": {
        "source": "tfds",
        "name": "shapes_crowded",
        "data_dir": "data/tfds",
        "train_annotations": "",
        "train_images": "",
        "val_annotations": "",
        "val_images": "",
        "filter_empty": False,
        "global_batch": 4,
        "buckets": ((192, 192),),
        "short_side": 192,
        "max_long_side": 192,
        "max_boxes": 32,
        "num_workers": 0,
        "mean": (127.0, 127.0, 127.0),
        "std": (64.0, 64.0, 64.0),
        "channel_order": "rgb",
    },
    # random initialisation: nothing to freeze
    "model": {"init_from": "", "frozen_stages": 0, "width": 0.25, "stem_channels": 16},
    "optim": {
        "name": "adamw",
        "num_epochs": 0.0,
        "reference_batch": 4,
        "schedule": "cosine",
        "learning_rate": 0.003,
        "bias_lr_factor": 1.0,
        "weight_decay": 0.02,
        "warmup": "linear",
        "warmup_steps": 30,
        "clip_norm": 5.0,
    },
    "eval": {"batch_size": 8, "num_pictures": 0},
    "run": {"log_every": 50, "checkpoint_every": 1000, "eval_every": 0},
}
"""Fields that every miniature has."""

UNLESS_CHANGED: dict[str, dict[str, Any]] = {
    "model": {
        "backbone": "resnet18",
        "flavour": "torchvision",
        "backbone_norm": "batch_norm",
        "fpn_channels": 32,
        "head_convs": 1,
    }
}
"""Fields that a miniature has where the recipe has the paper's value."""


DYNAMIC_BLOCKS = 2
"""Of a recipe with dynamic blocks instead of towers, which are a quarter as deep here."""

LENGTHS = {"assigner": ("warmup_steps",)}
"""Fields that count steps of the run, which shrink with it."""


def shrink(recipe: Recipe) -> Recipe:
    """A recipe in miniature, with what it changes in the base recipe but data, width and schedule.

    Args:
      recipe: any; its length is taken as a multiple of the paper's 90,000 steps. One with
        deformable convolutions keeps its backbone.
    """
    base = Recipe()
    groups = {}
    for name in recipe_io.GROUPS:
        group, before = getattr(recipe, name), getattr(base, name)
        values = dict(ALWAYS.get(name, {}))
        for field, value in UNLESS_CHANGED.get(name, {}).items():
            if getattr(group, field) == getattr(before, field):
                values[field] = value
        if name == "optim":
            share = group.num_steps / before.num_steps if group.num_steps else 1.0
            values["num_steps"] = max(1, round(share * NUM_STEPS))
        for field in LENGTHS.get(name, ()):
            if getattr(group, field, 0):
                values[field] = round(getattr(group, field) / base.optim.num_steps * NUM_STEPS)
        if name == "model" and group.dcn_stages:
            values.pop("backbone", None)  # a ResNet-18 has no bottlenecks to make deformable
        if name == "model" and group.dynamic_blocks:
            values["dynamic_blocks"] = DYNAMIC_BLOCKS
        if name == "data" and group.train_short_sides:
            values["train_short_sides"] = _scaled(group.train_short_sides, before.short_side)
        groups[name] = replace(group, **values)
    return replace(recipe, **groups)


def _scaled(sides: tuple[int, ...], full: int) -> tuple[int, ...]:
    """Short sides of multi-scale training, each once."""
    small = ALWAYS["data"]["short_side"]
    return tuple(sorted({min(small, round(side * small / full)) for side in sides}))


def recipe(arg: str = "") -> Recipe:
    """The miniature of another recipe.

    Args:
      arg: "recipe" or "recipe:argument", as after --config=; "" for the paper's base recipe.

    Raises:
      UserError: no such recipe, or itself.
    """
    name = arg.partition(":")[0]
    if name in ("mini", "mini.py", "configs/mini.py"):
        raise UserError(f"config argument {arg!r}: a miniature of a miniature. Give its recipe.")
    full = recipe_files.load_recipe(arg or "atss_r50_fpn_1x").to_dict()
    return shrink(recipe_io.recipe_from_mapping(full))


def get_config(arg: str = "") -> ConfigDict:
    """The recipe for the command line."""
    return common.config_dict(recipe(arg))
