"""Which fields of a recipe may change in a workdir that has one.

Locked in training is what changes the parameters. Where the data lie is not locked: the data are
compared by content (`train_data`). The other modes accept whatever leaves the network alone.
"""

import dataclasses
from typing import Any, NamedTuple

from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.run.recipe_io import AUTO_FIELDS

PARAMETER_GROUPS = ("model", "anchors", "assigner", "loss", "optim")
"""Groups that change the parameters, but for the fields of `HARMLESS`."""

HARMLESS = ("model.init_from", "model.remat")
"""Fields of those groups that a resumed run may change: it starts from a checkpoint, and what is
recomputed is equal."""

LENGTH = ("optim.num_steps", "optim.num_epochs")
"""May grow."""

BATCHES = (
    "data.exif",
    "data.filter_empty",
    "data.global_batch",
    "data.buckets",
    "data.short_side",
    "data.max_long_side",
    "data.train_short_sides",
    "data.augmentations",
    "data.max_boxes",
    "data.mean",
    "data.std",
    "data.channel_order",
    "run.seed",
)
"""Fields of the other groups that change what a training step sees."""

NORMALIZATION = ("data.mean", "data.std", "data.channel_order")
"""Part of the network, for those who use it."""

COMPUTED_OTHERWISE = ("model.dtype", "model.remat", "model.init_from")
"""Fields of the network that do not change which parameters it has."""


OF_A_START = (
    "run.distributed",
    "run.coordinator",
    "run.num_processes",
    "run.process_id",
    "run.init_timeout",
)
"""Fields that say which processes there are: of one start, not of the run."""


DERIVED = ("data.short_side", "data.max_long_side", "data.buckets")
"""Fields that follow from `data.image_size`."""


class Change(NamedTuple):
    """A field with another value than in the workdir."""

    name: str
    """ "group.field"."""
    old: Any
    new: Any

    def __str__(self) -> str:
        """As messages show it."""
        return f"config.{self.name}: {self.old!r} -> {self.new!r}"


def changes(old: Recipe, new: Recipe) -> list[Change]:
    """Every field in which two recipes differ.

    Args:
      old: the workdir's recipe.
      new: the one given now.
    """
    found = []
    for name in recipe_io.field_names():
        group, field = name.split(".")
        before, after = (getattr(getattr(recipe, group), field) for recipe in (old, new))
        if before != after:
            found.append(Change(name, before, after))
    return found


def locked_changes(old: Recipe, new: Recipe, *, training: bool) -> list[Change]:
    """The changes that a workdir refuses.

    Args:
      old: the workdir's recipe.
      new: the one given now.
      training: True refuses what changes the parameters, False what changes the network.
    """
    is_locked = _is_locked_in_training if training else _is_locked_elsewhere
    return [change for change in changes(old, new) if is_locked(change, old)]


def _is_locked_in_training(change: Change, old: Recipe) -> bool:
    group = change.name.partition(".")[0]
    if change.name in LENGTH:
        return not 0 < change.old < change.new
    if change.name == "optim.accumulate":  # equal gradients, but for statistics of a part
        return old.model.backbone_norm == "batch_norm"
    return change.name in BATCHES or (group in PARAMETER_GROUPS and change.name not in HARMLESS)


def _is_locked_elsewhere(change: Change, old: Recipe) -> bool:
    del old
    group = change.name.partition(".")[0]
    if group in PARAMETER_GROUPS:
        return change.name not in COMPUTED_OTHERWISE
    # the sizes that follow from an image size are chosen in training
    return change.name in NORMALIZATION or change.name == "data.image_size"


def for_one_process(recipe: Recipe) -> Recipe:
    """A run's recipe as one process reads it, wherever and by how many it was trained."""
    fields = {name.split(".")[1]: _of(Recipe(), name) for name in OF_A_START}
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **fields))


def is_left_open(config: Recipe) -> bool:
    """Whether a field is "auto": not chosen yet."""
    return any(_of(config, name) == value for name, value in AUTO_FIELDS.items())


def with_chosen(config: Recipe, old: Recipe, *, training: bool = False) -> Recipe:
    """A recipe whose fields left to be chosen ("auto") are those that the run chose.

    Args:
      config: the recipe given now.
      old: the workdir's recipe, in numbers.
      training: take all sizes of the run's image size; else sizes that are given stay.
    """
    names = [name for name, value in AUTO_FIELDS.items() if _of(config, name) == value]
    if old.data.image_size > 0 and config.data.image_size in (0, old.data.image_size):
        names += [n for n in DERIVED if training or _of(config, n) == _of(Recipe(), n)]
    fields = {name.split(".")[1]: _of(old, name) for name in names}
    if training and config.run.max_minutes and old.run.max_minutes:  # it chose its length in time
        config = _with_length(config, old)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


def _with_length(config: Recipe, old: Recipe) -> Recipe:
    """A recipe with the length of another, and its assigner's warm-up where both have one."""
    length = {name.split(".")[1]: _of(old, name) for name in LENGTH}
    assigner, warmup_steps = config.assigner, old.assigner.warmup_steps
    if assigner.warmup_steps and warmup_steps:
        assigner = dataclasses.replace(assigner, warmup_steps=warmup_steps)
    optim = dataclasses.replace(config.optim, **length)
    return dataclasses.replace(config, assigner=assigner, optim=optim)


def _of(recipe: Recipe, name: str) -> Any:
    group, field = name.split(".")
    return getattr(getattr(recipe, group), field)
