r"""The paper's Tables 1 to 8 (arXiv 1912.02424) and recipes after it: list, run and report rows.

    python scripts/paper_rows.py list --tables 4,5            rows with their commands
    python scripts/paper_rows.py run --tables 2,3 --preset mini --seeds 3 --out FOLDER
    python scripts/paper_rows.py report --out FOLDER          Markdown; --html, --json for files
    python scripts/paper_rows.py equal-time --out FOLDER ...  beside plain ATSS in equal time

`run` skips what is finished, so the same command goes on, and with --known=RESULTS.json also what
an earlier report wrote. Any number of machines may run it on a shared FOLDER
(scripts/row_queue.py says how they share it). At SIGTERM or Ctrl-C the running command saves, and
`run` ends with code 75. The seeds are the outer loop: stopped early, each seed so far is complete.
`--preset paper` is COCO and takes days of a GPU; `--preset mini` is configs/mini.py, minutes of a
CPU core; --data=FOLDER runs either on images of your own (COCO, YOLO or Pascal VOC layout), as
results of their own. Rows that are the same run are trained once.
Flags after `--` are added to every command, such as `-- --config.data.data_dir=/data`.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import row_equal_time
import row_process
import row_report
import table_rows
from row_process import RowFailedError, StoppedError, WorkdirHeldError
from row_queue import RowQueue
from table_rows import Row

PRESETS = ("paper", "mini")
MINI_IMAGE_SIZE = 256
"""Long side of a folder's images in miniature, px: small objects are small enough there."""
LONGER = "results of plain ATSS in more steps, of report --json"
KEPT = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Metrics of a result."""


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
    """The preset with the name of its folder of data, "mini-cells": what results are told by."""
    name = os.path.basename(os.path.abspath(data)) if data else ""
    return "-".join(part for part in (preset, name) if part)


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
    result = json.loads((workdir / "result.json").read_text())
    evaluations = {}
    for flags, command in zip(job.tests, tests, strict=True):
        row_process.call(command, clock.save)
        newest = max(workdir.glob("eval/*/result.json"), key=lambda path: path.stat().st_mtime_ns)
        evaluated = json.loads(newest.read_text())["metrics"]
        evaluations[" ".join(flags)] = {name: evaluated[name] for name in KEPT}
    return {
        "run": job.run,
        "preset": job.preset,
        "seed": job.seed,
        "command": shlex.join(commands(job, "WORKDIR", extra)[0]),
        "metrics": {name: result["metrics"][name] for name in KEPT},
        "evaluations": evaluations,
        "steps": result["steps"],
        "train_seconds": result["wall_seconds"],
        "all_seconds": round(clock.seconds, 1),
        "device": f"{result['num_devices']} x {result['device_kind']}",
        "versions": result["versions"],
    }


def work(queue: RowQueue, jobs: list[Job], do: Callable[[Job], dict[str, Any]]) -> list[str]:
    """Pulls jobs until each is finished or has failed, here or on another machine.

    Args:
      queue: shared with other machines.
      jobs: in order.
      do: what makes the result of one.

    Returns:
      Names of the failed ones.
    """
    while True:
        for number, job in enumerate(jobs, 1):
            claim = queue.claim(job.name)
            if claim is None:
                continue
            print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
            try:
                with claim.held():
                    queue.finish(job.name, do(job))
            except RowFailedError as error:
                queue.fail(job.name, str(error))
                print(f"failed: {error}", file=sys.stderr, flush=True)
            except WorkdirHeldError as error:  # as a killed worker's, which still saves
                print(f"tried again later: {error}", file=sys.stderr, flush=True)
        left = [job.name for job in jobs if not queue.is_done(job.name)]
        if all(queue.has_failed(name) for name in left):
            return left
        time.sleep(queue.expires / 4)  # another machine has them, or its claims expire


def _list(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    for row in options.selected:
        paper = "not at hand" if row.paper_ap is None else f"{row.paper_ap:.1f}"
        job = make_job(row, options.preset, 0, options.data)
        changes = ", ".join(row.changes) or "nothing"
        print(f"# table {row.table}, {row.name}: paper {paper}; from {row.base}: {changes}")
        for command in commands(job, f"workdirs/{job.preset}/{job.name}", extra):
            print(shlex.join(command))
    return 0


def _run(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    queue = RowQueue(options.out, options.expires)
    jobs = make_jobs(options.selected, options.preset, options.seeds, options.data)
    if options.retry_failed:
        for job in jobs:
            if queue.has_failed(job.name):
                queue.release_failed(job.name)
    if options.known:
        names = {job.name for job in jobs}
        for result in _read_results(options.known):
            name = job_name(result["preset"], result["run"], result["seed"])
            queue.finish(name, result)
            names.discard(name)
        print(f"{options.known}: has {len(jobs) - len(names)} of {len(jobs)} runs", flush=True)
    scratch = options.scratch or options.out / "runs"
    try:
        with row_process.stoppable():
            failed = work(queue, jobs, lambda job: run_job(job, scratch.resolve(), extra))
    except StoppedError as error:
        print(f"stopped, the same command goes on: {error}", file=sys.stderr)
        return row_process.PREEMPTED
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs finished", flush=True)
    for name in failed:
        print(f"failed: {queue.folder / 'failed' / name}.json", file=sys.stderr)
    return int(bool(failed))


def _read_results(path: Path) -> list[dict[str, Any]]:
    """What `report --json` wrote."""
    return json.loads(path.read_text())["results"]


def _finished(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of the preset in --out, a shared folder or a file of `report --json`."""
    is_folder = options.out.is_dir()
    results = RowQueue(options.out).results() if is_folder else _read_results(options.out)
    preset, found = preset_name(options.preset, options.data), {r["preset"] for r in results}
    results = [result for result in results if result["preset"] == preset]
    if not results:
        there = ", ".join(sorted(found)) or "nothing"
        raise ValueError(f"--out {options.out}: no finished row of {preset}, but of {there}.")
    return results


def _report(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    del extra
    results = _finished(options)
    if options.json:
        row_report.write_json(options.json, results)
    if options.html:
        options.html.write_text(row_report.html(options.selected, results))
    _show(row_report.markdown(options.selected, results), options)
    return 0


def _equal_time(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    del extra
    longer = [result for path in options.longer for result in _read_results(path)]
    costs = json.loads(options.costs.read_text())["rows"]
    rows, results = options.selected, _finished(options)
    _show(row_equal_time.markdown(rows, results, longer, costs, options.preset), options)
    return 0


def _show(text: str, options: argparse.Namespace) -> None:
    if options.into:
        preset = preset_name(options.preset, options.data)
        row_report.write_into(options.into, text, preset)
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    texts = {"list": "rows and their commands", "run": "run rows", "report": "tables of results"}
    texts["equal-time"] = "rows beside plain ATSS in equal steps and in equal time"
    for mode, text in texts.items():
        one = modes.add_parser(mode, help=text)
        one.add_argument("--tables", help="as in 2,3,beyond; all by default")
        one.add_argument("--rows", nargs="+", help="names or arguments, such as k=15")
        preset = "paper" if mode == "list" else None
        one.add_argument("--preset", choices=PRESETS, default=preset, required=preset is None)
        one.add_argument("--data", default="", help="folder of images, instead of the preset's")
        if mode != "list":
            one.add_argument("--out", type=Path, required=True, help="shared folder of results")
        if mode == "run":
            one.add_argument("--seeds", type=int, default=1, help="seeds 0 to N - 1")
            one.add_argument("--scratch", type=Path, help="folder of this machine for workdirs")
            one.add_argument("--expires", type=float, default=120, help="s until a claim is dead")
            one.add_argument("--known", type=Path, help="results of a report --json, not run again")
            one.add_argument("--retry-failed", action="store_true", help="run failed rows again")
        if mode in ("report", "equal-time"):
            one.add_argument("--into", type=Path, help="also between the marks of this page")
        if mode == "equal-time":
            one.add_argument("--costs", type=Path, required=True, help="of bench_recipes.py --json")
            one.add_argument("--longer", type=Path, nargs="+", required=True, help=LONGER)
        if mode == "report":
            one.add_argument("--html", type=Path, help="also write this page")
            one.add_argument("--json", type=Path, help="also write all results into this file")
    return parser


def main() -> None:
    """Lists, runs or reports rows."""
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:split])
    if options.data and options.mode == "run":
        options.data = os.path.expanduser(options.data)
        if not os.path.exists(options.data):
            parser.error(f"--data {options.data}: no such folder. Give one with images and labels.")
        if Path.cwd() != row_process.ROOT:  # where commands run
            options.data = os.path.abspath(options.data)
    try:
        tables = options.tables.split(",") if options.tables else None
        options.selected = table_rows.selected(tables, options.rows)
        modes = {"list": _list, "run": _run, "report": _report, "equal-time": _equal_time}
        sys.exit(modes[options.mode](options, tuple(arguments[split + 1 :])))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
