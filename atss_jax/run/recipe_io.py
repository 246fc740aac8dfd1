"""From a ConfigDict or JSON to a checked `Config`, back, and what two of them differ in.

Unknown fields (with the nearest known name), missing ones and wrong types are rejected before any
device is touched. Below this module no ConfigDict exists.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any

from atss_jax.run.recipe import Config

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


def field_names() -> list[str]:
    """All fields as "group.field".

    >>> "model.backbone" in field_names()
    True
    """
    groups = typing.get_type_hints(Config)
    return [f"{g}.{f.name}" for g, kind in groups.items() for f in dataclasses.fields(kind)]


def unknown_field_message(name: str) -> str:
    """An error text for a field that does not exist, naming the nearest that does."""
    known = field_names()
    groups = list(typing.get_type_hints(Config))
    group, _, field = name.partition(".")
    if field and group in groups:
        candidates = [k for k in known if k.startswith(group + ".")]
    elif field:
        candidates = known
    else:
        candidates = groups + [k.rsplit(".", 1)[-1] for k in known]
    suggestion = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]
    if not field and suggestion not in groups:
        suggestion = next(k for k in known if k.endswith("." + suggestion))
    return f"config.{name}: no such field. Did you mean config.{suggestion}?"


def check_config(config: Mapping[str, Any]) -> Config:
    """A `Config` from nested mappings (a ConfigDict, or JSON).

    Raises:
      ValueError: a field is unknown, missing or of the wrong type.
    """
    groups = typing.get_type_hints(Config)
    for group in config:
        if group not in groups:
            raise ValueError(unknown_field_message(group))
    built = {}
    for group, kind in groups.items():
        if group not in config:
            raise ValueError(f"config.{group}: missing. Start from configs/common.py.")
        values = config[group]
        fields = {f.name: f.type for f in dataclasses.fields(kind)}
        for name in values:
            if name not in fields:
                raise ValueError(unknown_field_message(f"{group}.{name}"))
        missing = sorted(set(fields) - set(values))
        if missing:
            raise ValueError(f"config.{group}.{missing[0]}: missing. Start from configs/common.py.")
        built[group] = kind(
            **{name: _typed(f"{group}.{name}", values[name], fields[name]) for name in fields}
        )
    return Config(**built)


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, where that loses nothing."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return _as_tuple(value)
    if type(value) is not kind:
        raise ValueError(f"config.{name}={value!r}: must be {kind.__name__}.")
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list | tuple) else value


def config_to_json(config: Config) -> str:
    """Stable JSON of a recipe (the workdir's config.json)."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def config_from_json(text: str) -> Config:
    """Inverse of `config_to_json`."""
    return check_config(json.loads(text))


def config_differences(old: Config, new: Config, *, training: bool) -> list[str]:
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
