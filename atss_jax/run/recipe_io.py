"""A recipe from nested mappings or JSON, to JSON, and what two recipes differ in."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from atss_jax.config import ConfigGroup
from atss_jax.data.config import DataConfig, moved_message
from atss_jax.errors import UserError
from atss_jax.run.recipe import Recipe

GROUPS: dict[str, type[ConfigGroup]] = get_type_hints(Recipe)
"""Name of a group -> its dataclass."""

FREE_FIELDS = (
    "data.num_workers",
    "data.prefetch",
    "run.log_every",
    "run.async_checkpoints",
    "run.distributed",
    "run.coordinator",
    "run.num_processes",
    "run.process_id",
    "run.init_timeout",
    "run.fsdp",
    "run.compilation_cache",
    "run.profile_steps",
    "run.wandb",
)
"""Fields that do not change a run's numbers: a workdir accepts other values of these."""

FREE_GROUPS = ("eval", "predict", "export")
"""Groups that do not change the parameters: `--mode=eval` and so on may differ in them."""


SYNONYMS = {
    "lr": "optim.learning_rate",
    "lr0": "optim.learning_rate",
    "epochs": "optim.num_epochs",
    "max_epochs": "optim.num_epochs",
    "steps": "optim.num_steps",
    "max_iter": "optim.num_steps",
    "optimizer": "optim.name",
    "batch": "data.global_batch",
    "batch_size": "data.global_batch",
    "imgsz": "data.short_side",
    "img_size": "data.short_side",
    "image_size": "data.short_side",
    "workers": "data.num_workers",
    "weights": "model.init_from",
    "pretrained": "model.init_from",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "conf": "predict.score_threshold",
    "iou": "eval.nms_iou",
    "tta": "eval.multiscale",
    "source": "predict.input",
}
"""Names that other trainers use -> ours."""


def field_names() -> list[str]:
    """All fields as "group.field".

    >>> "model.backbone" in field_names()
    True
    """
    return [f"{g}.{f.name}" for g, kind in GROUPS.items() for f in dataclasses.fields(kind)]  # type: ignore[arg-type]


def unknown_field_message(name: str) -> str:
    """An error text for a field that does not exist, naming the nearest that does."""
    known = field_names()
    group, _, field = name.partition(".")
    if group == "data" and field in DataConfig.MOVED:
        return moved_message(field)
    synonym = SYNONYMS.get(field or group)
    if synonym and (not field or group not in GROUPS or synonym.startswith(f"{group}.")):
        return f"config.{name}: no such field. Did you mean config.{synonym}?"
    if field and group in GROUPS:
        candidates = [k for k in known if k.startswith(group + ".")]
    elif field:
        candidates = known
    else:
        candidates = [*GROUPS, *(k.rsplit(".", 1)[-1] for k in known)]
    suggestion = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]
    if not field and suggestion not in GROUPS:
        suggestion = next(k for k in known if k.endswith("." + suggestion))
    return f"config.{name}: no such field. Did you mean config.{suggestion}?"


def recipe_from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings (a ConfigDict, or JSON); what is not given has its default.

    Raises:
      UserError: a group or field is unknown, or a value is wrong.
    """
    for group, fields in values.items():
        if group not in GROUPS:
            raise UserError(unknown_field_message(group))
        for field in GROUPS[group].upgrade(fields):
            if f"{group}.{field}" not in field_names():
                raise UserError(unknown_field_message(f"{group}.{field}"))
    return Recipe(
        **{name: kind.from_mapping(values.get(name, {})) for name, kind in GROUPS.items()}  # type: ignore[arg-type]
    )


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Nested dictionaries, the inverse of `recipe_from_mapping`."""
    return dataclasses.asdict(recipe)


def recipe_to_json(recipe: Recipe) -> str:
    """Stable JSON of a recipe (the workdir's config.json)."""
    return json.dumps(recipe_to_dict(recipe), indent=2, sort_keys=True) + "\n"


def recipe_from_json(text: str) -> Recipe:
    """Inverse of `recipe_to_json`."""
    return recipe_from_mapping(json.loads(text))


def recipe_differences(old: Recipe, new: Recipe, *, training: bool) -> list[str]:
    """Lines "group.field: old -> new" of the fields that make another run.

    Args:
      old: the workdir's recipe.
      new: the one given now.
      training: False also allows other values in `FREE_GROUPS`.
    """
    lines = []
    for name in field_names():
        group, field = name.split(".")
        if name in FREE_FIELDS or group in ("predict", "export"):
            continue
        if not training and group in FREE_GROUPS:
            continue
        before, after = (getattr(getattr(c, group), field) for c in (old, new))
        if before != after:
            lines.append(f"  config.{name}: {before!r} -> {after!r}")
    return lines
