r"""Stops real runs by signals at random moments of their whole life, from exec to exit.

A run of seconds is stopped, started again and stopped again until it is finished; then it is
compared bit for bit with an uninterrupted one, and the next begins. Every stop must give code 75
within 25 s, or 0 where the run was complete. Only a process that has no handler yet (Python itself
starts) may end by the signal. What a signal hit is what the process said on the screen.

    python scripts/signal_campaign.py                  # 40 signals
    python scripts/signal_campaign.py --processes 2    # 10
"""

import argparse
import collections
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tiny_run import PREEMPTED, Run, differences, make_data, patched

LIMIT_SECONDS = 25.0
"""From the signal to the end of all processes."""
MAX_MISSES = 10
"""Runs in a row that end before their moment: the moment cannot be reached."""
STEPS = 40
FLAGS = [
    f"--config.optim.num_steps={STEPS}",
    "--config.run.checkpoint_every=4",
    "--config.run.eval_every=8",
]
NO_CACHE = "--config.run.compilation_cache=off"
COMPILING, LOOP = r"^padding:", r"^devices:"
"""Lines before and after the programs are compiled."""
EVALUATING = r"^step (?!40:)\d+: evaluating"
LAST_EVALUATION = r"^step 40: evaluating"
EXPECTED = {
    "compilation": "before the first step",
    "evaluation": "the evaluation is",
    "last evaluation": "the evaluation is",
    "blocked input": "the step ends",
}
"""What the process must say for a signal to count for a moment; any signal counts for the others.
"""
SLEEPS = """
import os, time
real = os.open
def slow(path, *arguments, **keywords):
    while str(path).startswith({images!r}) and os.path.exists({flag!r}):
        time.sleep(1)
    return real(path, *arguments, **keywords)
os.open = slow
"""
"""A mount that does not answer while a file is there."""
PLANS = {
    1: {
        "any": 8,
        "start": 4,
        "compilation": 8,
        "evaluation": 8,
        "last evaluation": 4,
        "blocked input": 4,
        "end": 4,
    },
    2: {"any": 3, "start": 1, "compilation": 2, "evaluation": 2, "last evaluation": 1, "end": 1},
}
"""Number of processes -> moment -> signals."""


class Lengths(NamedTuple):
    """Seconds of an uninterrupted run, to draw moments from."""

    whole: float
    compilation: float
    evaluation: float


class Event(NamedTuple):
    """One stop."""

    moment: str
    what: str
    """Signals that were sent."""
    said: str
    """What the process said; "" when it had no handler yet."""
    step: int
    codes: list[int]
    seconds: float
    problem: str


def measure(run: Run) -> Lengths:
    """Waits for the end of a run; raises RuntimeError when it fails."""
    at: dict[str, float] = {}
    patterns = {"compiling": COMPILING, "loop": LOOP, "last": LAST_EVALUATION}
    while run.is_running():
        text = run.text()
        for name, pattern in patterns.items():
            if name not in at and re.search(pattern, text, re.M):
                at[name] = time.monotonic() - run.begin
        time.sleep(0.02)
    if any(run.wait()):
        raise RuntimeError(run.text()[-3000:])
    whole = time.monotonic() - run.begin
    return Lengths(whole, at["loop"] - at["compiling"], whole - at["last"])


def handles_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    with contextlib.suppress(OSError):
        found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def stands_still(run: Run, seconds: float = 4.0) -> bool:
    """Waits until no step is reported for so long; False when the run ended before."""
    step, since = run.last_step(), time.monotonic()
    while run.is_running():
        lines = run.text().splitlines()
        if run.last_step() != step or (lines and lines[-1].endswith("evaluating")):
            step, since = run.last_step(), time.monotonic()
        elif time.monotonic() - since > seconds:
            return True
        time.sleep(0.05)
    return False


def reach(run: Run, moment: str, lengths: Lengths, rng: random.Random) -> bool:
    """Waits for a moment; False when the run ended before."""
    if moment in ("any", "start"):
        at = rng.uniform(0, lengths.whole if moment == "any" else 1.5)
        time.sleep(max(at - (time.monotonic() - run.begin), 0.0))
        return run.is_running()
    wait, spread = {
        "compilation": (COMPILING, lengths.compilation),
        "evaluation": (EVALUATING, lengths.evaluation * 0.4),
        "last evaluation": (LAST_EVALUATION, lengths.evaluation * 0.2),  # the rest are pictures
        "blocked input": (r"^step \d+/", 0.0),
        "end": (LAST_EVALUATION + r"\n(.*\n)?AP ", 1.0),
    }[moment]
    if not run.wait_for(wait):
        return False
    time.sleep(rng.uniform(0, spread))
    return run.is_running()


def send(run: Run, moment: str, rng: random.Random) -> str:
    """Sends a signal, or a burst; returns its name."""
    only = None
    if len(run.processes) > 1 and moment not in ("start", "any"):
        only = rng.choice([None, *range(len(run.processes))])
    what = rng.choice(["SIGTERM", "SIGTERM", "SIGTERM", "SIGINT", "burst"])
    if what == "burst":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            run.send(number, only)
            time.sleep(0.3)
    else:
        run.send(signal.Signals[what], only)
    return what + ("" if only is None else f" to process {only}")


def strike(
    run: Run, moment: str, lengths: Lengths, rng: random.Random, blocks: Path, workdir: Path
) -> Event | None:
    """Stops a run at a moment; None when it ended before."""
    with contextlib.ExitStack() as stack:
        if not reach(run, moment, lengths, rng):
            return None
        if moment == "blocked input":
            blocks.touch()
            stack.callback(blocks.unlink)
            if not stands_still(run):
                return None
        has_handler = all(handles_signals(p.pid) for p in run.processes if p.poll() is None)
        if not run.is_running():
            return None
        begin = time.monotonic()
        what = send(run, moment, rng)
        codes = run.wait()
        seconds = time.monotonic() - begin
    found = re.search(r"(?:SIGTERM|SIGINT): stopping; (.*)", run.text())
    said = found[1] if found else ""
    problem = ""
    if set(codes) == {0}:
        problem = "" if (workdir / "result.json").exists() else "code 0 without a result"
    elif set(codes) != {PREEMPTED}:
        is_early = not has_handler and set(codes) <= {
            -signal.SIGTERM, -signal.SIGINT, 1, 130, PREEMPTED
        }  # fmt: skip
        problem = "" if is_early else f"codes {codes}"
    if seconds > LIMIT_SECONDS:
        problem += f" {seconds:.0f} s to the end"
    if EXPECTED.get(moment, "") not in said:
        moment = "any"
    return Event(moment, what, said, run.last_step(), codes, seconds, problem)


def campaign(folder: Path, processes: int, plan: dict[str, int], seed: int) -> dict[str, object]:
    """All signals of a plan; returns the summary."""
    rng = random.Random(seed)
    flags = [*make_data(folder / "data"), *FLAGS]
    log, blocks = folder / "log.txt", folder / "blocks"
    images, reference = folder / "data" / "train", folder / "reference"
    variables = patched(folder / "patch", SLEEPS.format(images=str(images), flag=str(blocks)))
    lengths = measure(Run(reference, flags, log, processes=processes))
    again = measure(Run(folder / "again", flags, log, processes=processes))
    lengths = Lengths(again.whole, lengths.compilation, again.evaluation)
    problems = differences(reference, folder / "again", STEPS)
    print(f"uninterrupted: {lengths}; a second run differs in {problems}", flush=True)
    todo = [moment for moment, count in plan.items() for _ in range(count)]
    rng.shuffle(todo)
    events: list[Event] = []
    lives = finished = misses = 0
    workdir = folder / "run"
    while todo or workdir.exists():
        moment = todo[-1] if todo else ""
        extra = [NO_CACHE] if moment == "compilation" else []
        run = Run(workdir, [*flags, *extra], log, processes=processes, variables=variables)
        lives += 1
        event = strike(run, moment, lengths, rng, blocks, workdir) if todo else None
        if event is None and any(codes := run.wait()):
            problems.append(f"undisturbed, but codes {codes}: {run.text()[-2000:]}")
            shutil.rmtree(workdir, ignore_errors=True)
        elif event is None or set(event.codes) == {0}:
            found = differences(reference, workdir, STEPS)
            print(f"    finished; differences: {found}", flush=True)
            problems += found
            finished += 1
            shutil.rmtree(workdir)
        misses = misses + 1 if event is None and todo else 0
        if misses == MAX_MISSES:
            problems.append(f"{todo.pop()}: not reached in {misses} runs")
            misses = 0
        if event is not None:
            events.append(event)
            if event.moment in todo:
                todo.reverse()
                todo.remove(event.moment)
                todo.reverse()
            print(
                f"{len(events):3} {event.moment:16} {event.what:22} step {event.step:2} "
                f"codes {event.codes} {event.seconds:5.1f} s  {event.said} {event.problem}",
                flush=True,
            )
            if event.problem:
                problems.append(event.problem)
                print(run.text()[-3000:], flush=True)
    codes = collections.Counter(str(code) for event in events for code in event.codes)
    return {
        "processes": processes,
        "signals": len(events),
        "moments": dict(collections.Counter(event.moment for event in events)),
        "codes": dict(codes),
        "without_a_handler_yet": sum(not event.said for event in events),
        "slowest_exit_seconds": round(max(event.seconds for event in events), 1),
        "starts": lives,
        "runs_compared": finished,
        "problems": problems,
    }


def main() -> int:
    """Runs the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=1, choices=tuple(PLANS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", default="", help="only these, as in any=2,start=1")
    args = parser.parse_args()
    plan = PLANS[args.processes]
    if args.moments:
        plan = {name: int(n) for name, n in (m.split("=") for m in args.moments.split(","))}
    with tempfile.TemporaryDirectory() as folder:
        summary = campaign(Path(folder), args.processes, plan, args.seed)
    print(json.dumps(summary))
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
