"""A run that the user named is looked at before anything slow is imported, as in `given_paths`.

A folder that is none is answered with the runs near it. This module imports no JAX.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from atss_jax.errors import MissingFileError, UserError
from atss_jax.run import recipe_io
from atss_jax.runtime import checkpoint_record

MAX_NAMES = 5
"""So many runs or evaluations are listed."""


def check(workdir: str, checkpoint: str = "last") -> None:
    """Raises unless there is a run with the checkpoint that is to be read.

    Args:
      workdir: folder of the run; one that is not local is not looked at.
      checkpoint: "last", "best" or a step.

    Raises:
      UserError: what is there instead, and what could be meant.
    """
    if "://" in workdir:
        return
    folder = Path(workdir)
    check_folder(folder)
    checkpoints = folder / "checkpoints"
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = sorted(int(path.name) for path in found if path.name.isdigit())
    if not steps:
        above = _run_above(folder)
        hint = "The training has not saved yet: start it, or wait for its first save."
        if above:
            hint = f"Give the run itself: {above}."
        raise UserError(f"{workdir}: no checkpoint in this folder. {hint}")
    checkpoint_record.chosen_steps(epath.Path(checkpoints), steps, checkpoint)


def check_order(workdir: str, inputs: Sequence[str]) -> None:
    """Raises UserError where one of the inputs is a run, and the first word is none."""
    for path in inputs:
        if is_run(Path(path)) and not is_run(Path(workdir)):
            raise UserError(f"{workdir}: no run. The run comes first: atss predict {path} ...")


def check_report(folder: Path, output: Path | None = None) -> None:
    """Raises unless a folder holds what a report is made of, and the file can be written.

    Args:
      folder: a workdir, or one of the evaluations in its `eval`.
      output: of the report; None for one in the folder.

    Raises:
      UserError: what is missing, and how to get it.
    """
    check_folder(folder)
    recipe_io.read_recipe(folder / "config.json")
    if not (folder / "detections.json").exists():
        evaluations = [path.parent for path in sorted(folder.glob("eval/*/detections.json"))]
        raise MissingFileError(
            f"{folder}: the training was not evaluated. Give one of the evaluations: "
            f"{_listed(evaluations)}."
            if evaluations
            else f"{folder}: nothing was evaluated. Run `atss eval {folder}`, then give its folder "
            f"below {folder / 'eval'}."
        )
    if output is not None and output.is_dir():
        raise UserError(
            f"--output={output}: a folder. Give a file, as in {output / 'report.html'}."
        )
    if output is not None and not output.parent.is_dir():
        raise MissingFileError(f"--output={output}: {output.parent} is no folder. Make it first.")


def check_folder(folder: Path) -> None:
    """Raises UserError unless a folder holds a config.json; names runs near it."""
    if folder.is_dir() and (folder / "config.json").exists():
        return
    what = "no run in this folder (no config.json)"
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
    raise MissingFileError(f"{folder}: {what}. {_hint(folder)}")


def is_run(folder: Path) -> bool:
    """Whether a training has saved something in a folder."""
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _hint(folder: Path) -> str:
    """What could be meant by a folder that is no run."""
    if above := _run_above(folder):
        return f"Give the run itself: {above}."
    place = folder if folder.is_dir() else folder.parent
    try:
        runs = sorted(path for path in place.iterdir() if is_run(path))
    except OSError:
        runs = []
    near = difflib.get_close_matches(folder.name, [run.name for run in runs], n=1)
    if near and place != folder:
        return f"Did you mean {place / near[0]}?"
    if runs:
        return f"Give one of the runs there: {_listed(runs)}."
    return "Give the folder of a run, as in workdirs/NAME."


def _run_above(folder: Path) -> Path | None:
    """The run that a folder or file lies in."""
    for start in (folder, folder.absolute()):  # "." has no parents of its own
        above = (parent for parent in list(start.parents)[:3] if is_run(parent))
        if found := next(above, None):
            return found
    return None


def _listed(paths: Sequence[Path]) -> str:
    more = ", ..." if len(paths) > MAX_NAMES else ""
    return ", ".join(map(os.fspath, paths[:MAX_NAMES])) + more
