r"""The paper's Tables 1 to 8 (arXiv 1912.02424) and recipes after it: list, run and report rows.

    python scripts/paper_rows.py list --tables 4,5            rows with their commands
    python scripts/paper_rows.py run --tables 2,3 --preset mini --seeds 3 --out FOLDER
    python scripts/paper_rows.py report --preset mini --out FOLDER           --html, --json: files
    python scripts/paper_rows.py equal-time --preset mini --out FOLDER ...   see docs/beyond.md

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
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import row_equal_time
import row_jobs
import row_process
import row_report
import row_results
import table_rows
from atss_jax import files
from row_jobs import Job
from row_process import RowFailedError, StoppedError, WorkdirHeldError
from row_queue import RowQueue

PLAIN = "RetinaNet (#A=1) + ATSS"
"""Row of Table 3 that is plain ATSS."""
LONGER = "results of plain ATSS in more steps, of report --json"
SHORTEST_EXPIRY = 10.0
"""Seconds: file servers show a change of another machine only after a while."""


def work(queue: RowQueue, jobs: list[Job], do: Callable[[Job], dict[str, Any]]) -> list[str]:
    """Pulls jobs until each is finished or has failed, here or on another machine.

    Args:
      queue: shared with other machines.
      jobs: in order.
      do: what makes the result of one.

    Returns:
      Names of the failed ones.

    Raises:
      ValueError: a command refuses what it was given before any job was finished: likely a
        mistake in the flags of all of them, so none is recorded as failed.
    """
    while True:
        with _patience("the shared folder"):
            for number, job in enumerate(jobs, 1):
                claim = queue.claim(job.name)
                if claim is None:
                    continue
                print(f"[{number}/{len(jobs)}] {job.name}", flush=True)
                with _patience(job.name), claim.held():
                    try:
                        queue.finish(job.name, do(job))
                    except RowFailedError as error:
                        if error.is_refused and not any(queue.is_done(j.name) for j in jobs):
                            raise ValueError(str(error)) from error
                        queue.fail(job.name, str(error))
                        print(f"failed: {error}", file=sys.stderr, flush=True)
            left = [job.name for job in jobs if not queue.is_done(job.name)]
            if all(queue.has_failed(name) for name in left):
                return left
        time.sleep(queue.expires / 4)  # another machine has them, or its claims expire


@contextlib.contextmanager
def _patience(what: str) -> Generator[None, None, None]:
    """What may be over in a moment is said, and tried again later.

    Such are a file server that is away, and a killed worker's command that still saves.
    """
    try:
        yield
    except (OSError, WorkdirHeldError) as error:
        print(f"{what}: tried again later: {error}", file=sys.stderr, flush=True)


def _list(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    for row in options.selected:
        paper = "not at hand" if row.paper_ap is None else f"{row.paper_ap:.1f}"
        job = row_jobs.make_job(row, options.preset, 0, options.data)
        changes = ", ".join(row.changes) or "nothing"
        print(f"# table {row.table}, {row.name}: paper {paper}; from {row.base}: {changes}")
        for command in row_jobs.commands(job, f"workdirs/{job.preset}/{job.name}", extra):
            print(shlex.join(command))
    return 0


def _run(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    jobs = row_jobs.make_jobs(options.selected, options.preset, options.seeds, options.data)
    names = {job.name for job in jobs}
    if options.data:
        row_jobs.check_data(options.selected, options.data)
    known = row_results.read(options.known) if options.known else []
    there = row_results.read(options.out) if options.out.is_dir() else []
    row_jobs.check_same([*there, *known], jobs, extra)
    queue = RowQueue(options.out, options.expires)
    _agree(queue, options, extra)
    if options.retry_failed:
        for job in jobs:
            if queue.has_failed(job.name):
                queue.release_failed(job.name)
    for result in known:
        name = row_jobs.job_name(result["preset"], result["run"], result["seed"])
        queue.finish(name, result)
        names.discard(name)
    if known:
        print(f"{options.known}: has {len(jobs) - len(names)} of {len(jobs)} runs", flush=True)
    scratch = options.scratch or options.out / "runs"
    try:
        with row_process.stoppable():
            failed = work(queue, jobs, lambda job: row_jobs.run_job(job, scratch.resolve(), extra))
    except StoppedError as error:
        print(f"stopped, the same command goes on: {error}", file=sys.stderr)
        return row_process.PREEMPTED
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs finished", flush=True)
    for name in failed:
        print(f"failed: {queue.folder / 'failed' / name}.json", file=sys.stderr)
    if failed:
        print("--retry-failed runs them again", file=sys.stderr)
    return int(bool(failed))


def _agree(queue: RowQueue, options: argparse.Namespace, extra: tuple[str, ...]) -> None:
    """Refuses other data or flags than those with which a machine began in the same folder."""
    preset = row_jobs.preset_name(options.preset, options.data)
    own = row_jobs.settings(extra) | ({"--data": options.data} if options.data else {})
    first = queue.agree(preset, own)
    if first != own:
        raise ValueError(
            f"--out {options.out}: rows of {preset} were begun there with {first or 'no flags'}, "
            f"and these are {own or 'none'}. Give the same, or another folder of results."
        )


def _finished(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of the preset in --out, a shared folder or a file of `report --json`."""
    results = row_results.read(options.out)
    preset = row_jobs.preset_name(options.preset, options.data)
    found = {result["preset"] for result in results}
    results = [result for result in results if result["preset"] == preset]
    if not results:
        there = ", ".join(sorted(found)) or "nothing"
        raise ValueError(f"--out {options.out}: no finished row of {preset}, but of {there}.")
    return results


def _report(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    del extra
    results = _finished(options)
    names = {
        row_jobs.make_job(row, options.preset, 0, options.data).run for row in options.selected
    }
    preset = row_jobs.preset_name(options.preset, options.data)
    failed = [
        name
        for name in row_results.failed_jobs(options.out)
        if any(name.startswith(f"{preset}-{run}-seed") for run in names)
    ]
    text = row_report.markdown(options.selected, results, failed)
    _show(text, options)
    if options.json:
        row_results.write(options.json, results)
    if options.html:
        files.write_whole(options.html, row_report.html(options.selected, results, failed))
    return 0


def _equal_time(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    del extra
    results, preset = _finished(options), row_jobs.preset_name(options.preset, options.data)
    longer = [r for path in options.longer for r in row_results.read(path) if r["preset"] == preset]
    base = row_equal_time.cost_name(table_rows.selected(["3"], [PLAIN])[0], options.preset)
    costs = row_results.read_costs(options.costs, base)
    _show(
        row_equal_time.markdown(options.selected, results, longer, costs, options.preset), options
    )
    return 0


def _show(text: str, options: argparse.Namespace) -> None:
    if options.into:
        preset = row_jobs.preset_name(options.preset, options.data)
        row_report.write_into(options.into, text, preset)
    print(text)


def _path(text: str) -> Path:
    """A path of the command line."""
    if not text:
        raise argparse.ArgumentTypeError("is empty. Give a path.")
    return Path(text).expanduser()


def _data(text: str) -> str:
    """A folder of the command line, as the commands see it, which run in the repository's root."""
    path = _path(text)
    return str(path) if Path.cwd() == row_process.ROOT else os.path.abspath(path)


def _seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number of seeds, 1 or more.")
    return int(text)


def _expires(text: str) -> float:
    if not text.replace(".", "", 1).isdecimal() or float(text) < SHORTEST_EXPIRY:
        raise argparse.ArgumentTypeError(f"{text}: give {SHORTEST_EXPIRY:.0f} seconds or more.")
    return float(text)


def _words(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty. Leave it out for all.")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    texts = {"list": "rows and their commands", "run": "run rows", "report": "tables of results"}
    texts["equal-time"] = "rows beside plain ATSS in equal steps and in equal time"
    for mode, text in texts.items():
        one = modes.add_parser(mode, help=text)
        one.add_argument("--tables", type=_words, help="as in 2,3,beyond; all by default")
        one.add_argument("--rows", nargs="+", type=_words, help="names or arguments, such as k=15")
        preset = "paper" if mode == "list" else None
        presets = row_jobs.PRESETS
        one.add_argument("--preset", choices=presets, default=preset, required=preset is None)
        one.add_argument("--data", type=_data, help="images instead of the preset's")
        if mode != "list":
            one.add_argument("--out", type=_path, required=True, help="shared folder of results")
        if mode == "run":
            one.add_argument("--seeds", type=_seeds, default=1, help="seeds 0 to N - 1")
            one.add_argument("--scratch", type=_path, help="folder of this machine for workdirs")
            one.add_argument(
                "--expires", type=_expires, default=120, help="s until a claim is dead"
            )
            one.add_argument("--known", type=_path, help="results of report --json, not run again")
            one.add_argument("--retry-failed", action="store_true", help="run failed rows again")
        if mode in ("report", "equal-time"):
            one.add_argument("--into", type=_path, help="also between the marks of this page")
        if mode == "equal-time":
            one.add_argument(
                "--costs", type=_path, required=True, help="of bench_recipes.py --json"
            )
            one.add_argument("--longer", type=_path, nargs="+", required=True, help=LONGER)
        if mode == "report":
            one.add_argument("--html", type=_path, help="also write this page")
            one.add_argument("--json", type=_path, help="also write all results into this file")
    return parser


def main() -> None:
    """Lists, runs or reports rows."""
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:split])
    options.data, extra = options.data or "", tuple(arguments[split + 1 :])
    try:
        tables = list(dict.fromkeys(options.tables.split(","))) if options.tables else None
        options.selected = table_rows.selected(tables, options.rows)
        row_jobs.check_flags(extra)
        modes = {"list": _list, "run": _run, "report": _report, "equal-time": _equal_time}
        sys.exit(modes[options.mode](options, extra))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
