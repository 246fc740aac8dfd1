"""The files of a workdir beside metrics and checkpoints: config, classes, results, detections."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath

from atss_jax.run import recipe_io
from atss_jax.run.recipe import Recipe

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pycocotools")
"""Packages whose versions a result records."""


def write_json(path: epath.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old or the new file, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def claim_workdir(config: Recipe, workdir: epath.Path, *, training: bool) -> None:
    """Writes config.json, or checks that the workdir belongs to the same recipe.

    Args:
      config: the recipe given now.
      workdir: folder of the run; made when training.
      training: False requires an existing run, and lets evaluation fields differ.

    Raises:
      ValueError: the workdir holds another recipe; shows the difference.
      FileNotFoundError: no run there, and not training.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            old = recipe_io.recipe_from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} does not fit this version of atss_jax: {error}") from error
        changes = recipe_io.recipe_differences(old, config, training=training)
        if changes:
            raise ValueError(
                f"{workdir} belongs to a run with another configuration (there -> now):\n"
                + "\n".join(changes)
                + "\nUse another --workdir, or the configuration of that run."
            )
        return
    if not training:
        raise FileNotFoundError(f"{path}: no run here. Train first, or check --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        temporary = path.with_name("config.json.tmp")
        temporary.write_text(recipe_io.recipe_to_json(config))
        temporary.replace(path)


def write_classes(
    workdir: epath.Path, class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """Writes classes.json, so that the run can be used without its training data."""
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
    }
    write_json(workdir / "result.json", result)
    return result
