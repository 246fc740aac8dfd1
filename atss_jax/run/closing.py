"""What a finished run says last: AP by class, the best step, the time, and what to do next."""

import datetime
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.image_files import FolderSource
from atss_jax.evaluation.coco_metrics import MAIN_METRIC, known_or_none, unique_names
from atss_jax.run.limits import best_step

MAX_CLASSES = 20
"""Rows of the table; of more classes, those with the lowest AP are shown."""
NAME_WIDTH = 40
"""A longer class name is cut, characters."""


class ClassRow(NamedTuple):
    """A line of the table."""

    name: str
    images: int
    """That have an object of the class."""
    objects: int
    """To find, crowds left out."""
    ap: float | None
    """None where there is nothing to find."""
    recall: float | None


def class_rows(dataset: DetectionDataset, metrics: Mapping[str, float]) -> list[ClassRow]:
    """All objects first, then each class in the order of the data.

    Args:
      dataset: that was evaluated.
      metrics: of the evaluation.
    """
    known = known_or_none(metrics)
    kept = ~dataset.annotations.is_crowd
    records, ids = dataset.annotations.record[kept], dataset.annotations.category_id[kept]
    rows = [ClassRow("all", dataset.num_records, len(ids), known.get("AP"), known.get("AR100"))]
    names = unique_names(dataset.class_names, dataset.category_ids)
    for category, name in zip(dataset.category_ids, names, strict=True):
        mine = records[ids == category]
        scores = (known.get(f"{kind}/{name}") for kind in ("AP", "AR"))
        rows.append(ClassRow(name, len(np.unique(mine)), len(mine), *scores))
    return rows


def table(rows: list[ClassRow]) -> str:
    """The rows under a heading; at most 80 characters wide."""
    first, classes = rows[0], rows[1:]
    lines = []
    if len(classes) > MAX_CLASSES:
        lines = [f"the {MAX_CLASSES} of {len(classes)} classes with the lowest AP:"]
        classes = sorted(classes, key=lambda r: 2.0 if r.ap is None else r.ap)[:MAX_CLASSES]
    shown = [first, *classes]
    width = max(5, *(min(len(row.name), NAME_WIDTH) for row in shown))
    lines.append(f"{'class':{width}}  images  objects     AP  recall")
    for row in shown:
        name = row.name if len(row.name) <= width else row.name[: width - 3] + "..."
        ap, recall = ("-" if x is None else f"{x:.3f}" for x in (row.ap, row.recall))
        lines.append(f"{name:{width}}  {row.images:6}  {row.objects:7}  {ap:>5}  {recall:>6}")
    return "\n".join(lines)


def closing_text(
    dataset: DetectionDataset,
    evaluated: Mapping[str, Mapping[str, float]],
    *,
    step: int,
    ended: str,
    training_seconds: float,
    seconds: float,
) -> str:
    """What a run that was evaluated has reached.

    Args:
      dataset: that was evaluated.
      evaluated: metrics of each evaluated step.
      step: the last one, which is among them.
      ended: why the run ended before its last step; "" where it did not.
      training_seconds: over all starts.
      seconds: likewise, with reading, compiling and evaluations.
    """
    metrics = evaluated[str(step)]
    lines = [f"{ended}; ended at step {step}"] if ended else []
    lines.append(table(class_rows(dataset, metrics)))
    best = best_step(evaluated)
    if best is None:
        lines.append("no object to find in the validation images, so no AP")
    elif best != step:
        value = evaluated[str(best)][MAIN_METRIC]
        lines.append(f"best AP {value:.3f} at step {best}; the table is of step {step}")
    else:
        lines.append(f"step {step} has the best AP of {len(evaluated)} evaluation(s)")
    lines.append(f"{step} steps in {_clock(training_seconds)}, {_clock(seconds)} in all")
    return "\n".join(lines)


def next_commands(
    workdir: str,
    dataset: DetectionDataset,
    evaluated: Mapping[str, Mapping[str, float]],
    *,
    step: int,
    program: str = "atss",
) -> str:
    """What to type after a run: lines for the shell, whatever the names of folders are.

    Args:
      workdir: folder of the run.
      dataset: that was evaluated; its first image is the example, where it is a file.
      evaluated: metrics of each evaluated step.
      step: the last one.
      program: what to type for `atss`, see `program_name`.
    """
    folder, best = _quoted(workdir), best_step(evaluated)
    which = "" if best in (None, step) else " --checkpoint=best"
    image, source = "IMAGE_OR_FOLDER", dataset.source
    if isinstance(source, FolderSource) and source.is_local:
        image = _quoted(source.path(0))
    return (
        f"next:\n  {program} predict {folder} {image}{which}\n"
        f"  {program} report {folder}\n  {program} export {folder}{which}"
    )


def program_name() -> str:
    """What to type for `atss`: its path where the shell does not find that of this environment."""
    own, found = os.path.join(os.path.dirname(sys.executable), "atss"), shutil.which("atss")
    if not os.access(own, os.X_OK):
        return "atss" if found else f"{_quoted(sys.executable)} -m atss_jax.cli"
    if found and os.path.realpath(found) == os.path.realpath(own):
        return "atss"
    is_below = os.path.dirname(own).startswith(os.getcwd() + os.sep)
    return _quoted(os.path.relpath(own) if is_below else own)


def _quoted(path: str) -> str:
    """A path as a shell and our own reader of flags take it.

    >>> _quoted("C d*"), _quoted("-x")
    ("'C d*'", './-x')
    """
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))
