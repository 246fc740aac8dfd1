"""The files of a workdir beside metrics and checkpoints: config, its history, classes, results."""

import datetime
import errno
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath

from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import known_or_none
from atss_jax.files import write_whole
from atss_jax.run import recipe_changes, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import screen

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pycocotools")
"""Packages whose versions a result records."""


NEVER_WRITABLE = (FileExistsError, NotADirectoryError, PermissionError)
"""Errors after which a second try fails, too."""


def write_json(path: epath.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old or the new file, never half of one."""
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_result(path: epath.Path) -> dict[str, Any]:
    """The content of a result.json; {} where there is none.

    Raises:
      UserError: a damaged file.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Remove it, and repeat the command of the training or the "
            "evaluation, which writes it anew."
        ) from error


def checkpoint_steps(workdir: epath.Path) -> list[int]:
    """Steps of the checkpoints in a workdir."""
    folder = workdir / "checkpoints"
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def has_checkpoints(workdir: epath.Path) -> bool:
    """Whether a run has saved something here."""
    return bool(checkpoint_steps(workdir))


def make_folder(folder: epath.Path, flag: str) -> None:
    """Makes a folder that the user named, with those above it; files can be written into it.

    Args:
      folder: the folder.
      flag: where its name was given, for messages.

    Raises:
      UserError: it cannot be made, or is read-only.
    """
    what = "made"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        what = "written to"
        if "://" not in os.fspath(folder):
            with tempfile.TemporaryFile(dir=os.fspath(folder)):
                pass
    except OSError as error:
        if not isinstance(error, NEVER_WRITABLE) and error.errno != errno.EROFS:
            raise  # such as a full disk: a later try may succeed
        raise UserError(
            f"{flag}={folder}: this folder cannot be {what} ({error.strerror or error}). Give "
            "another one, or check what is there."
        ) from error


def read_config(workdir: epath.Path) -> Recipe:
    """The recipe that a workdir holds.

    Raises:
      UserError: no run there, or a config.json that is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{path}: no run here. Train first, or check --workdir.")
    return recipe_io.read_recipe(path)


def check_workdir(
    config: Recipe, workdir: epath.Path, *, training: bool
) -> list[recipe_changes.Change]:
    """The fields in which a recipe differs from the workdir's; writes nothing.

    Args:
      config: the recipe given now.
      workdir: folder of the run.
      training: False requires an existing run, and refuses only what changes the network.

    Raises:
      UserError: no run there and not training; a change that the workdir refuses (shows it);
        checkpoints without config.json.
    """
    if training and not (workdir / "config.json").exists():
        if has_checkpoints(workdir):
            raise UserError(
                f"{workdir} has checkpoints but no config.json, so nobody knows their recipe. Put "
                "config.json back, or use another --workdir."
            )
        return []
    old = read_config(workdir)
    locked = recipe_changes.locked_changes(old, config, training=training)
    if locked:
        what = "the parameters of the run" if training else "the network or its training"
        raise UserError(
            f"{workdir} belongs to a run with another configuration (there -> now):\n"
            + "\n".join(f"  {change}" for change in locked)
            + f"\nThese fields change {what}. Use another --workdir, or leave them as they are "
            "there" + (" (optim.num_steps and num_epochs may grow)." if training else ".")
        )
    return recipe_changes.changes(old, config)


def open_workdir(config: Recipe, workdir: epath.Path) -> list[recipe_changes.Change]:
    """Checks a recipe for a mode that reads a run; prints and returns what differs from the run's.

    What to predict, where to write it and by how many processes is no difference: it is given anew
    each time.

    Raises:
      UserError: as `check_workdir`.
    """
    changes = check_workdir(config, workdir, training=False)
    if jax.process_index() == 0:
        for change in changes:
            is_given_anew = change.name.startswith(("predict.", "export."))
            if not is_given_anew and change.name not in recipe_changes.OF_A_START:
                screen.show(f"other than in {workdir}: {change}", sys.stderr)
    return changes


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


def claim_workdir(config: Recipe, workdir: epath.Path) -> None:
    """Makes a workdir the run's, or goes on in it: config.json holds the recipe given now.

    What differs from the recipe that was there is printed, and noted in config_history.jsonl.

    Args:
      config: the recipe given now.
      workdir: folder of the run; made when missing.

    Raises:
      UserError: as `check_workdir`.
    """
    changes = check_workdir(config, workdir, training=True)
    path = workdir / "config.json"
    if jax.process_index() != 0 or (path.exists() and not changes):
        return
    workdir.mkdir(parents=True, exist_ok=True)
    if changes:
        for change in changes:
            print(f"changed since the last start: {change}", file=sys.stderr)
        history = workdir / "config_history.jsonl"
        row = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": max(checkpoint_steps(workdir), default=0),
            "changes": {change.name: [change.old, change.new] for change in changes},
        }
        lines = history.read_text() if history.exists() else ""
        write_whole(history, lines + json.dumps(row) + "\n")
    write_whole(path, recipe_io.recipe_to_json(config))


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
    about: dict[str, Any],
    metrics: dict[str, float],
    steps: int,
    wall_seconds: float,
    images_per_s: float,
) -> dict[str, Any]:
    """Writes and returns result.json: what a run reached, in which time, on what.

    Args:
      workdir: folder of the run.
      about: what the metrics are of: split, step, test-time augmentation.
      metrics: of the last evaluation; empty without one.
      steps: updates done.
      wall_seconds: seconds of training over all starts of the run, without evaluations.
      images_per_s: over those seconds.
    """
    device = jax.devices()[0]
    result = {
        **about,
        "metrics": known_or_none(metrics),
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
