r"""Kills a training run again and again, and checks that nothing of it can be seen afterwards.

A small run is interrupted by SIGKILL at random moments, by SIGKILL inside checkpoint saves and by
SIGTERM, restarted after each, and finally compared with an uninterrupted run: the checkpoint of the
last step bit for bit, and metrics.jsonl byte for byte.

    python scripts/kill_test.py --processes 1
    python scripts/kill_test.py --processes 2
"""

import argparse
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tiny_run import PREEMPTED, Run, differences, make_data


def interrupt(run: Run, kind: str, checkpoints: Path, rng: random.Random) -> dict | None:
    """Does one thing to a run; None when the run had ended before."""
    if not run.wait_for(r"^step \d+/"):
        return None
    if kind == "save":
        if not run.wait_until(
            lambda: any(checkpoints.glob("*.orbax-checkpoint-tmp")), 60, "save", pause=0.001
        ):
            return None
        time.sleep(rng.uniform(0, 0.05))
    else:
        time.sleep(rng.uniform(0, 1.5))
    if not run.is_running():
        return None
    start, step = time.monotonic(), run.last_step()
    run.send(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    codes = run.wait()
    return {
        "kind": kind,
        "step": step,
        "codes": codes,
        "exit_seconds": time.monotonic() - start,
    }


def main() -> int:
    """Runs the test; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=17, help="SIGKILLs at random moments")
    parser.add_argument("--save_kills", type=int, default=8, help="SIGKILLs inside a save")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--save_every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="workdirs/kill_test", help="emptied first")
    args = parser.parse_args()
    folder = Path(args.folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flags = [
        *make_data(folder / "data"),
        f"--config.optim.num_steps={args.steps}",
        f"--config.run.checkpoint_every={args.save_every}",
        "--config.run.log_every=5",
        "--config.run.keep_last=3",
    ]
    reference, killed, log = folder / "reference", folder / "killed", folder / "log.txt"
    print("uninterrupted run", flush=True)
    run = Run(reference, flags, log, mode="train", processes=args.processes)
    if any(run.wait(3600)):
        print(run.text()[-3000:])
        return 1
    rng = random.Random(args.seed)
    todo = ["kill"] * args.kills + ["save"] * args.save_kills + ["term"] * args.terms
    rng.shuffle(todo)
    events, previous, starts = [], None, 0
    while True:
        run = Run(killed, flags, log, mode="train", processes=args.processes)
        starts += 1
        event = interrupt(run, todo[-1], killed / "checkpoints", rng) if todo else None
        codes = run.wait(3600) if event is None else []
        if previous is not None:
            previous["lost"] = previous["step"] - run.restored_step()
        if event is None:
            if any(codes):
                print(run.text()[-3000:])
                return 1
            break
        todo.pop()
        events.append(event)
        previous = event
        print(f"{len(events)}: {event}", flush=True)
    found = differences(reference, killed, args.steps)
    counts = {kind: sum(e["kind"] == kind for e in events) for kind in ("kill", "save", "term")}
    terms = [e for e in events if e["kind"] == "term"]
    summary = {
        "processes": args.processes,
        "sigkills": counts["kill"] + counts["save"],
        "sigkills_inside_a_save": counts["save"],
        "sigterms": counts["term"],
        "starts": starts,
        "max_lost_steps": max((e.get("lost", 0) for e in events), default=0),
        "save_every": args.save_every,
        "max_sigterm_exit_seconds": round(max((e["exit_seconds"] for e in terms), default=0), 2),
        "sigterm_exit_codes": sorted({c for e in terms for c in e["codes"]}),
        "differences": found,
        "interruptions_left": len(todo),
    }
    for line in found:
        print(line)
    print(json.dumps(summary))
    codes_are_right = set(summary["sigterm_exit_codes"]) <= {PREEMPTED}
    return 0 if codes_are_right and not found and not todo else 1


if __name__ == "__main__":
    sys.exit(main())
