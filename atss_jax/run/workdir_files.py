"""The files of a workdir beside metrics and checkpoints: config, classes, results, detections."""

import datetime
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pycocotools")
"""Packages whose versions a result records."""


def write_json(path: epath.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old or the new file, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def has_checkpoints(workdir: epath.Path) -> bool:
    """Whether a run has saved something here."""
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def check_workdir(config: Recipe, workdir: epath.Path, *, training: bool) -> None:
    """Raises unless `claim_workdir` would accept the recipe; writes nothing.

    Raises:
      UserError: another recipe (shows the difference), or checkpoints without config.json.
      FileNotFoundError: no run there, and not training.
    """
    path = workdir / "config.json"
    if not path.exists():
        if not training:
            raise FileNotFoundError(f"{path}: no run here. Train first, or check --workdir.")
        if has_checkpoints(workdir):
            raise UserError(
                f"{workdir} has checkpoints but no config.json, so nobody knows their recipe. Put "
                "config.json back, or use another --workdir."
            )
        return
    try:
        old = recipe_io.recipe_from_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} does not fit this version of atss_jax: {error}") from error
    changes = recipe_io.recipe_differences(old, config, training=training)
    if changes:
        raise UserError(
            f"{workdir} belongs to a run with another configuration (there -> now):\n"
            + "\n".join(changes)
            + "\nUse another --workdir, or the configuration of that run."
        )


def check_classes(
    workdir: epath.Path, class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Raises UserError unless the data has the classes that the network was trained on.

    Args:
      workdir: folder of the run; without classes.json anything is accepted.
      class_names: of the data, by class index.
      category_ids: of the data, by class index.
    """
    path = workdir / "classes.json"
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text())
        trained = list(zip(there["class_names"], there["category_ids"], strict=True))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    now = list(zip(class_names, category_ids, strict=True))
    if trained != now:
        raise UserError(
            f"{path}: the network was trained on (name, category id) {trained}, the data has "
            f"{now}. Use data with the same categories, or another --workdir."
        )


def claim_workdir(config: Recipe, workdir: epath.Path, *, training: bool) -> None:
    """Writes config.json, or checks that the workdir belongs to the same recipe.

    Args:
      config: the recipe given now.
      workdir: folder of the run; made when training.
      training: False requires an existing run, and lets evaluation fields differ.

    Raises:
      UserError: the workdir holds another recipe; shows the difference.
      FileNotFoundError: no run there, and not training.
    """
    check_workdir(config, workdir, training=training)
    path = workdir / "config.json"
    if path.exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        temporary = path.with_name("config.json.tmp")
        temporary.write_text(recipe_io.recipe_to_json(config))
        temporary.replace(path)


def write_classes(
    workdir: epath.Path, class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Writes classes.json, so that the run can be used without its training data.

    One that exists is compared, never overwritten.
    """
    check_classes(workdir, class_names, category_ids)
    if (workdir / "classes.json").exists():
        return
    if jax.process_index() == 0:
        classes = {"class_names": list(class_names), "category_ids": list(category_ids)}
        write_json(workdir / "classes.json", classes)


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with."""
    found = {"python": platform.python_version()}
    for name in ("atss_jax", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_result(
    workdir: epath.Path,
    *,
    metrics: dict[str, float],
    steps: int,
    wall_seconds: float,
    images_per_s: float,
) -> dict[str, Any]:
    """Writes and returns result.json: what a run reached, in which time, on what.

    Args:
      workdir: folder of the run.
      metrics: of the last evaluation; empty without one.
      steps: updates done.
      wall_seconds: seconds of training over all starts of the run, without evaluations.
      images_per_s: over those seconds.
    """
    device = jax.devices()[0]
    result = {
        "metrics": metrics,
        "steps": steps,
        "wall_seconds": round(wall_seconds, 3),
        "images_per_s": round(images_per_s, 3),
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "versions": versions(),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(workdir / "result.json", result)
    return result
