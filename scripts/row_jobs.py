"""Rows as training runs: their names, their commands, and what they reached."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import row_process
import table_rows
from atss_jax.data.layouts import find_layout
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.recipe import Recipe
from row_process import RowFailedError
from table_rows import Row

PRESETS = ("paper", "mini")
MINI_IMAGE_SIZE = 256
"""Long side of a folder's images in miniature, px: small objects are small enough there."""
KEPT = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Metrics of a result."""
OWN = ("run.seed", "data.root")
"""Fields that are set here."""
PLACES = re.compile(
    r"run\.(?!seed)\w+|data\.(data_dir|index_folder|num_workers|(train|val)_(annotations|images))"
)
"""Fields that say where a machine has things and how it works: they may differ between machines."""


class Job(NamedTuple):
    """One training run with its evaluations, which one or more rows name."""

    run: str
    """`Row.run` of its rows."""
    preset: str
    """With its data, as `preset_name` joins them."""
    seed: int
    config: str
    """Value of --config."""
    flags: tuple[str, ...]
    tests: tuple[tuple[str, ...], ...]
    """Flags of each further evaluation."""

    @property
    def name(self) -> str:
        """Name of its files and of its workdir."""
        return job_name(self.preset, self.run, self.seed)


def job_name(preset: str, run: str, seed: int) -> str:
    """Name of a job's files and of its workdir."""
    return f"{preset}-{run}-seed{seed}"


def preset_name(preset: str, data: str = "") -> str:
    """The preset with the name of its folder of data, "mini-cells": what results are told by.

    Raises:
      ValueError: the folder has no name.
    """
    if not data:
        return preset
    name = re.sub(r"[^\w.+-]", "_", os.path.basename(os.path.abspath(data)))
    if not name or len(name) > 80:
        raise ValueError(
            f"--data {data}: rows are named after it. Give a folder with a short name."
        )
    return f"{preset}-{name}"


def make_job(row: Row, preset: str, seed: int, data: str = "") -> Job:
    """The job of a row; the same for all rows that are the same run.

    Args:
      row: what to run.
      preset: one of `PRESETS`.
      seed: of initialisation, order and augmentations.
      data: folder of images and labels; "" for the preset's.
    """
    if preset == "mini":
        config = f"mini:{row.config}"
    else:
        recipe, colon, argument = row.config.partition(":")
        config = f"configs/{recipe}.py{colon}{argument}"
    tests = sorted({other.test for other in table_rows.ROWS if other.run == row.run} - {()})
    flags = (*row.flags, f"--config.run.seed={seed}")
    if data:
        size = MINI_IMAGE_SIZE if preset == "mini" else 0  # 0 chooses from the data
        fields = {"root": data, "image_size": size, "max_boxes": 0}
        flags += tuple(f"--config.data.{name}={value}" for name, value in fields.items())
    return Job(row.run, preset_name(preset, data), seed, config, flags, tuple(tests))


def make_jobs(rows: list[Row], preset: str, seeds: int, data: str = "") -> list[Job]:
    """All jobs of rows, each once, one seed after the other."""
    jobs: dict[str, Job] = {}
    for seed in range(seeds):
        for row in rows:
            job = make_job(row, preset, seed, data)
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def commands(job: Job, workdir: str, extra: tuple[str, ...] = ()) -> list[list[str]]:
    """What makes a job: a training run, then each further evaluation."""
    base = ["python", "-m", "atss_jax.main", f"--config={job.config}", f"--workdir={workdir}"]
    base += [*job.flags, *extra]
    return [base, *([*base, "--mode=eval", *test] for test in job.tests)]


def check_flags(extra: Iterable[str]) -> None:
    """Refuses what follows "--" unless it sets fields of recipes that rows leave open.

    Raises:
      ValueError: another flag, an unknown field, or one that is set here.
    """
    for flag in extra:
        found = re.fullmatch(r"--config\.(\w+\.\w+)=.*", flag, re.DOTALL)
        if found is None:
            raise ValueError(f"-- {flag}: only fields may follow, as --config.GROUP.FIELD=VALUE.")
        if found[1] not in recipe_io.field_names():
            raise ValueError(recipe_io.unknown_field_message(found[1]))
        if found[1] in OWN:
            raise ValueError(f"-- {flag}: is set by the rows. Use --seeds and --data.")


def check_data(rows: Sequence[Row], data: str) -> None:
    """Refuses a folder without images and labels, and rows that do not fit other images.

    Raises:
      ValueError: no data set there; a row that trains at several sizes.
    """
    find_layout(data)
    scaled = [row for row in rows if _recipe(row.config).data.train_short_sides]
    if scaled:
        names = ", ".join(f"{row.name!r} of table {row.table}" for row in scaled)
        raise ValueError(
            f"--data {data}: {names}: trained at several sizes, which are those of the preset's "
            "images. Leave them out with --tables or --rows."
        )


def _recipe(config: str) -> Recipe:
    return recipe_io.recipe_from_mapping(recipe_files.load_recipe(config).to_dict())


def settings(command: Sequence[str]) -> dict[str, str]:
    """The fields that a command sets, but for places.

    Its recipe is not among them: rows that name it differently, as "ablations:k=9" and "ablations",
    share a run, whose name tells it from others.

    >>> settings("python -m x --config=mini:a --workdir=W --config.run.seed=1".split())
    {'--config.run.seed': '1'}
    """
    pairs = [word.partition("=")[::2] for word in command if word.startswith("--config.")]
    return {n: v for n, v in pairs if not PLACES.fullmatch(n.removeprefix("--config."))}


def check_same(
    results: Iterable[dict[str, Any]], jobs: Sequence[Job], extra: tuple[str, ...]
) -> None:
    """Refuses results that other flags made than those of the jobs of their names.

    Raises:
      ValueError: names the first one and the fields.
    """
    wanted = {job.name: settings(commands(job, "WORKDIR", extra)[0]) for job in jobs}
    for result in results:
        name = job_name(result["preset"], result["run"], result["seed"])
        made = settings(shlex.split(result["command"]))
        differing = sorted(set(made.items()) ^ set(wanted.get(name, made).items()))
        if differing:
            fields = ", ".join(dict.fromkeys(field for field, _ in differing))
            raise ValueError(
                f"{name} is finished with other flags ({fields}): {result['command']}. Give the "
                "same flags, or another folder of results."
            )


def run_job(job: Job, scratch: Path, extra: tuple[str, ...]) -> dict[str, Any]:
    """Runs a job's commands in a workdir below `scratch`, going on with what is there.

    Returns:
      Its result: metrics, seconds of all its starts, and what they were measured on.

    Raises:
      RowFailedError, StoppedError, WorkdirHeldError: see `row_process.call`.
    """
    workdir = scratch / job.name
    clock = row_process.Stopwatch(workdir)
    train, *tests = commands(job, str(workdir), extra)
    row_process.call(train, clock.save)
    result = _read(workdir / "result.json")
    evaluations = {}
    for flags, command in zip(job.tests, tests, strict=True):
        row_process.call(command, clock.save)
        newest = max(workdir.glob("eval/*/result.json"), key=lambda path: path.stat().st_mtime_ns)
        evaluations[" ".join(flags)] = _kept(_read(newest))
    return {
        "run": job.run,
        "preset": job.preset,
        "seed": job.seed,
        "command": shlex.join(commands(job, "WORKDIR", extra)[0]),
        "metrics": _kept(result),
        "evaluations": evaluations,
        "steps": result["steps"],
        "train_seconds": result["wall_seconds"],
        "all_seconds": round(clock.seconds, 1),
        "device": f"{result['num_devices']} x {result['device_kind']}",
        "versions": result["versions"],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        if not set(KEPT) <= set(result["metrics"]):
            raise KeyError("AP")
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RowFailedError(f"{path}: no result of a run ({type(error).__name__}).") from error


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result["metrics"][name] for name in KEPT}
