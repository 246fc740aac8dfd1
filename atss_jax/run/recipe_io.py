"""A recipe from nested mappings or JSON, and to JSON; the names of its fields."""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints, runtime_checkable

from atss_jax.config import ConfigGroup, field_infos
from atss_jax.data.config import DataConfig, moved_message
from atss_jax.errors import UserError
from atss_jax.run.recipe import Recipe

Group = TypeVar("Group", bound=ConfigGroup)

GROUPS: dict[str, type[ConfigGroup]] = get_type_hints(Recipe)
"""Name of a group -> its dataclass."""

SYNONYMS = {
    "lr": "optim.learning_rate",
    "lr0": "optim.learning_rate",
    "base_lr": "optim.learning_rate",
    "epochs": "optim.num_epochs",
    "max_epochs": "optim.num_epochs",
    "steps": "optim.num_steps",
    "iterations": "optim.num_steps",
    "max_iter": "optim.num_steps",
    "optimizer": "optim.name",
    "wd": "optim.weight_decay",
    "grad_clip": "optim.clip_norm",
    "batch": "data.global_batch",
    "batch_size": "data.global_batch",
    "imgsz": "data.image_size",
    "img_size": "data.image_size",
    "workers": "data.num_workers",
    "weights": "model.init_from",
    "pretrained": "model.init_from",
    "checkpoint": "model.init_from",
    "patience": "run.patience",
    "early_stopping": "run.patience",
    "time": "run.max_minutes",
    "max_time": "run.max_minutes",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "half": "model.dtype",
    "conf": "predict.score_threshold",
    "iou": "eval.nms_iou",
    "tta": "eval.multiscale",
    "source": "predict.input",
}
"""Names that other trainers use -> ours."""

_ALL_DEVICES = (
    "JAX uses every device that it sees: choose with the environment, as in JAX_PLATFORMS=cpu or "
    "CUDA_VISIBLE_DEVICES=0."
)
_FROM_DATA = "The classes are read from the training annotations."
_WORKDIR = "Results go to the folder that --workdir names."

WITHOUT_FIELD = {
    "resume": "A run goes on from the newest checkpoint of its --workdir by itself.",
    "device": _ALL_DEVICES,
    "devices": _ALL_DEVICES,
    "gpu": _ALL_DEVICES,
    "gpus": _ALL_DEVICES,
    "num_classes": _FROM_DATA,
    "nc": _FROM_DATA,
    "save_dir": _WORKDIR,
    "output_dir": _WORKDIR,
    "work_dir": _WORKDIR,
}
"""Names that other trainers use for what needs no field here -> how it is done."""


AUTO_FIELDS = {"data.image_size": 0, "data.global_batch": 0, "data.max_boxes": 0}
"""Fields that "auto" may be given for -> the number that it is."""


PATH_FIELDS = {
    "data": (
        *("root", "data_dir"),
        *("train_annotations", "train_images", "val_annotations", "val_images"),
    ),
    "model": ("init_from",),
    "predict": ("input", "output"),
}
"""Group -> fields in which "~" is the home folder."""


def expand_user(path: str | os.PathLike) -> str:
    """A path with "~" at its start written out; anything else as it is, hf:// and gs:// too.

    >>> expand_user("~/photos") == os.path.expanduser("~") + "/photos", expand_user("gs://a/~")
    (True, 'gs://a/~')
    """
    return os.path.expanduser(os.fspath(path))


def field_names() -> list[str]:
    """All fields as "group.field".

    >>> "model.backbone" in field_names()
    True
    """
    return [f"{g}.{f.name}" for g, kind in GROUPS.items() for f in dataclasses.fields(kind)]  # type: ignore[arg-type]


def unknown_field_message(name: str) -> str:
    """An error text for a field that does not exist: names the nearest, or what others call so.

    Args:
      name: "group.field", or a word.

    >>> unknown_field_message("optim.lr")
    'config.optim.lr: no such field. Did you mean config.optim.learning_rate?'
    """
    known = field_names()
    group, _, field = name.partition(".")
    if group == "data" and field in DataConfig.MOVED:
        return moved_message(field)
    if name in GROUPS:
        example = dataclasses.fields(GROUPS[name])[0].name  # type: ignore[arg-type]
        return (
            f"config.{name}: a group. Give one of its fields, as in --config.{name}.{example}=..."
        )
    word = field or group
    own = [k.partition(".")[2] for k in known if field and k.startswith(f"{group}.")]
    if not difflib.get_close_matches(word, own, n=1):
        if word in WITHOUT_FIELD:
            return f"config.{name}: no such field. {WITHOUT_FIELD[word]}"
        if word in SYNONYMS:
            return f"config.{name}: no such field. Did you mean config.{SYNONYMS[word]}?"
    if field and group in GROUPS:
        candidates = [k for k in known if k.startswith(group + ".")]
    elif field:
        candidates = known
    else:
        candidates = [*GROUPS, *(k.rsplit(".", 1)[-1] for k in known)]
    near = difflib.get_close_matches(name, GROUPS, n=1) if not field else []
    suggestion = (near or difflib.get_close_matches(name, candidates, n=1, cutoff=0.0))[0]
    if not field and suggestion not in GROUPS:
        suggestion = next(k for k in known if k.endswith("." + suggestion))
    return f"config.{name}: no such field. Did you mean config.{suggestion}?"


def wrong_value_message(name: str, text: str) -> str:
    """An error text for a value that cannot be read as its field's type.

    Args:
      name: "group.field", which exists.
      text: what was given.

    >>> wrong_value_message("optim.num_steps", "many")
    "config.optim.num_steps='many': must be a whole number, at least 0."
    """
    group, _, field = name.partition(".")
    types = {info.name: info.type for info in field_infos(GROUPS[group])}
    wanted = re.sub(r"^float\b", "a number", re.sub(r"^int\b", "a whole number", types[field]))
    if name in AUTO_FIELDS:
        wanted = f"auto or {wanted}"
    return f"config.{name}={text!r}: must be {wanted}."


def recipe_from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings (a ConfigDict, or JSON); what is not given has its default.

    "~" is written out in paths.

    Raises:
      UserError: a group or field is unknown, or a value is wrong.
    """
    for group, fields in values.items():
        if group not in GROUPS:
            raise UserError(unknown_field_message(group))
        if not isinstance(fields, Mapping):
            raise UserError(f"config.{group}={_short(fields)}: must be a group of named fields.")
        for field in GROUPS[group].upgrade(fields):
            if f"{group}.{field}" not in field_names():
                raise UserError(unknown_field_message(f"{group}.{field}"))
    groups = {name: kind.from_mapping(values.get(name, {})) for name, kind in GROUPS.items()}
    return Recipe(**{name: _expanded(group) for name, group in groups.items()})  # type: ignore[arg-type]


def _expanded(group: Group) -> Group:
    """A group with its paths written out."""
    found = {}
    for field in PATH_FIELDS.get(group.group, ()):
        given: str | tuple[str, ...] = getattr(group, field)
        is_one = isinstance(given, str)
        found[field] = expand_user(given) if is_one else tuple(map(expand_user, given))
    return dataclasses.replace(group, **found)  # type: ignore[type-var]


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Nested dictionaries, the inverse of `recipe_from_mapping`."""
    return dataclasses.asdict(recipe)


def recipe_to_json(recipe: Recipe) -> str:
    """Stable JSON of a recipe (the workdir's config.json)."""
    return json.dumps(recipe_to_dict(recipe), indent=2, sort_keys=True) + "\n"


def recipe_from_json(text: str) -> Recipe:
    """Inverse of `recipe_to_json`.

    Raises:
      UserError: not JSON, not the JSON of a recipe, or a value is wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}). Is the file complete?") from error
    if not isinstance(values, dict):
        raise UserError(f"a recipe has named groups ({', '.join(GROUPS)}), not {_short(values)}.")
    if values and not values.keys() & GROUPS.keys():
        raise UserError(
            f"no recipe of atss_jax, perhaps another program's: it has {_short(list(values))}, and "
            f"none of the groups {', '.join(GROUPS)}. Give the folder of a run of atss_jax."
        )
    return recipe_from_mapping(values)


@runtime_checkable
class _TextFile(Protocol):
    """A path: of pathlib, or of etils.epath for a bucket."""

    def read_text(self) -> str: ...


def read_recipe(path: _TextFile) -> Recipe:
    """The recipe in a workdir's config.json.

    Raises:
      UserError: the file is not one of these; the message begins with its path.
      OSError: it cannot be read.
    """
    try:
        return recipe_from_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def default_workdir(source: str) -> Path:
    """Where a run goes that names no folder.

    Args:
      source: a folder of data, or a recipe.

    >>> default_workdir("/data/photos/"), default_workdir("configs/ablations.py:k=15,dcn")
    (PosixPath('workdirs/photos'), PosixPath('workdirs/ablations-k_15-dcn'))
    """
    name = re.sub(r"\.py(?=$|:)", "", source.rstrip("/").split("/")[-1])
    if name in ("", ".", ".."):
        name = Path(source).resolve().name
    name = re.sub(r"[^\w.-]+", "-", name.replace("=", "_")).strip("-")
    return Path("workdirs") / (name or "run")
