r"""Experiments with faults of the machine, of several processes, and of numbers.

Each asserts the right behaviour. Prints a table; the last line is JSON.

    python scripts/fault_matrix.py                    # a minute
    python scripts/fault_matrix.py --real             # and the command line itself: a quarter hour
    python scripts/fault_matrix.py --flips 300 --blocks 100
"""

import argparse
import collections
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import numpy as np

import fault_cases
import fault_damage
import fault_processes
from fault_damage import HangError, LostError, SilentlyWrongError, WrongCodeError

KINDS = {
    "lost": LostError,
    "silent_wrong": SilentlyWrongError,
    "hangs": HangError,
    "wrong_codes": WrongCodeError,
}


def run(action: Callable[[], None], seconds: float) -> Exception | None:
    """The error of an experiment; `HangError` after so many seconds."""

    def late(*_: object) -> NoReturn:
        raise HangError(f"no end after {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        action()
    except Exception as error:  # noqa: BLE001 - reported in the table
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    return None


def damage_at_random(flips: int, blocks: int, seed: int = 0) -> collections.Counter:
    """Damages the newest checkpoint again and again; every read must fall back or be equal.

    It is read by what evaluation, prediction and export share, then by what resumes a training.

    Args:
      flips: bits flipped, one at a time.
      blocks: blocks zeroed or files cut, one at a time.
      seed: of the places.

    Returns:
      Counts of "detected", "harmless" (equal arrays) and "silent_wrong"; "detected" and "harmless"
      by both.
    """
    rng, counts = np.random.default_rng(seed), collections.Counter()
    for number in range(flips + blocks):
        with fault_damage.folder_of(3, 6) as folder:
            files = [p for p in fault_damage.files_of(folder, 6) if p.stat().st_size]
            path = files[number % len(files)]
            kinds = [fault_damage.flip]
            if number >= flips:
                kinds = [fault_damage.zero_block, fault_damage.cut]
            path.write_bytes(kinds[number % len(kinds)](path.read_bytes(), rng))
            try:
                steps = {fault_damage.read_only(folder), fault_damage.resume(folder)}
            except SilentlyWrongError:
                steps = set()
        outcomes = {"detected": {3}, "harmless": {6}}
        counts[next((k for k, v in outcomes.items() if v == steps), "silent_wrong")] += 1
    return counts


def main() -> int:
    """Runs the experiments; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="experiments whose group or name holds this")
    parser.add_argument("--real", action="store_true", help="real processes besides")
    parser.add_argument("--flips", type=int, default=0, help="random bit flips besides")
    parser.add_argument("--blocks", type=int, default=0, help="random zeroed or cut blocks besides")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of an experiment")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # they are about the damage done here
    counts = dict.fromkeys(["experiments", "passed", *KINDS], 0)
    cases = fault_cases.cases() + (fault_processes.cases() if args.real else [])
    for group, name, action in cases:
        if args.only not in f"{group} {name}":
            continue
        begin = time.monotonic()
        error = run(action, args.seconds)
        counts["experiments"] += 1
        counts["passed"] += error is None
        for kind, error_class in KINDS.items():
            counts[kind] += isinstance(error, error_class)
        outcome = "ok" if error is None else f"FAILED: {type(error).__name__}: {error}"
        print(f"{group:14} {name:52} {time.monotonic() - begin:6.1f} s  {outcome}", flush=True)
        if error is not None:
            traceback.print_exception(error)
    if args.flips or args.blocks:
        found = damage_at_random(args.flips, args.blocks)
        print(f"{args.flips} bits flipped, {args.blocks} blocks zeroed or cut: {dict(found)}")
        counts["silent_wrong"] += found["silent_wrong"]
    print(json.dumps(counts))
    return 0 if counts["passed"] == counts["experiments"] and not counts["silent_wrong"] else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of an experiment that hangs must not hold the end
