r"""Kills a training run again and again, and checks that nothing of it can be seen afterwards.

A small run is interrupted by SIGKILL at random moments, by SIGKILL inside checkpoint saves and by
SIGTERM, restarted after each, and finally compared with an uninterrupted run: the checkpoint of the
last step bit for bit, and metrics.jsonl byte for byte.

    python scripts/kill_test.py --processes 1
    python scripts/kill_test.py --processes 2
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from quick_compile import xla_flags

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
"""Exit code of a run that SIGTERM stopped."""
RECIPE = [
    "--config=configs/quickstart.py",
    "--mode=train",
    "--config.data.buckets=((64, 96), (96, 64))",
    "--config.data.short_side=56",
    "--config.data.max_long_side=88",
    "--config.model.width=0.125",
    "--config.model.fpn_channels=32",
    "--config.model.head_convs=1",
    "--config.run.log_every=5",
    "--config.run.keep_last=3",
]


class Run:
    """A started run: one or several processes.

    A start is mostly compilation, because JAX keeps compiled programs of process 0 only; so
    programs are compiled with few optimisations.
    """

    def __init__(self, workdir: Path, arguments: list[str], processes: int, log: Path):
        self._log = log
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.processes = []
        self._offset = log.stat().st_size if log.exists() else 0
        for index in range(processes):
            extra = []
            if processes > 1:
                extra = [
                    "--config.run.distributed=address",
                    f"--config.run.coordinator=localhost:{port}",
                    f"--config.run.num_processes={processes}",
                    f"--config.run.process_id={index}",
                    "--config.run.init_timeout=120",
                ]
            output = log.open("ab") if index == 0 else subprocess.DEVNULL
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "atss_jax.main", f"--workdir={workdir}"]
                    + [*RECIPE, *arguments, *extra],
                    cwd=ROOT,
                    stdout=output,
                    stderr=output,
                    env={
                        **os.environ,
                        "JAX_PLATFORMS": "cpu",
                        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *xla_flags()]),
                    },
                )
            )

    def text(self) -> str:
        """What process 0 has printed since its start."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    def is_running(self) -> bool:
        """False as soon as one process has ended."""
        return all(p.poll() is None for p in self.processes)

    def send(self, number: int) -> None:
        """A signal to every process."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, timeout: float) -> list[int]:
        """Exit codes of all processes."""
        end = time.monotonic() + timeout
        return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

    def last_step(self) -> int:
        """The last step of a progress line, or the one restored."""
        found = re.findall(r"^step (\d+)/|checkpoint of step (\d+)", self.text(), re.M)
        return max((int(a or b) for a, b in found), default=0)

    def restored_step(self) -> int:
        """The step of the checkpoint that the run went on from."""
        found = re.search(r"going on from the checkpoint of step (\d+)", self.text())
        return int(found[1]) if found else 0


def wait_for_steps(run: Run, timeout: float = 300.0) -> bool:
    """Waits for the first progress line; False when the run ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if not run.is_running():
            return False
        if re.search(r"^step \d+/", run.text(), re.M):
            return True
        time.sleep(0.02)
    raise TimeoutError(f"no step within {timeout} s:\n{run.text()[-3000:]}")


def wait_for_save(run: Run, checkpoints: Path, timeout: float = 60.0) -> bool:
    """Waits until a checkpoint is being written; False when the run ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and run.is_running():
        if any(checkpoints.glob("*.orbax-checkpoint-tmp")):
            return True
        time.sleep(0.001)
    return False


def load_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    import jax
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(folder, restore_args=as_numpy)  # on whatever devices saved
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def compare(reference: Path, killed: Path, num_steps: int) -> list[str]:
    """Differences between two finished runs; empty when there are none."""
    a, b = load_state(reference, num_steps), load_state(killed, num_steps)
    if a.keys() != b.keys():
        return [f"arrays differ: {sorted(a.keys() ^ b.keys())[:5]}"]
    different = [f"{k} differs" for k in a if a[k].tobytes() != b[k].tobytes()]
    rows = [(w / "metrics.jsonl").read_bytes() for w in (reference, killed)]
    if rows[0] != rows[1]:
        different.append("metrics.jsonl differs")
    steps = [json.loads(line)["step"] for line in rows[1].splitlines()]
    if steps != list(range(1, num_steps + 1)):
        different.append("metrics.jsonl has steps twice, missing or out of order")
    return different


def interrupt(run: Run, kind: str, checkpoints: Path, rng: random.Random) -> dict | None:
    """Does one thing to a run; None when the run had ended before."""
    if not wait_for_steps(run):
        return None
    if kind == "save":
        if not wait_for_save(run, checkpoints):
            return None
        time.sleep(rng.uniform(0, 0.05))
    else:
        time.sleep(rng.uniform(0, 1.5))
    if not run.is_running():
        return None
    start, step = time.monotonic(), run.last_step()
    run.send(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    codes = run.wait(120)
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
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save_every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default="data/tfds")
    parser.add_argument("--folder", default="workdirs/kill_test", help="emptied first")
    args = parser.parse_args()
    folder = Path(args.folder).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = [
        f"--config.optim.num_steps={args.steps}",
        f"--config.run.checkpoint_every={args.save_every}",
        f"--config.data.data_dir={args.data_dir}",
    ]
    reference, killed, log = folder / "reference", folder / "killed", folder / "log.txt"
    print("uninterrupted run", flush=True)
    codes = Run(reference, arguments, args.processes, folder / "reference.txt").wait(3600)
    if any(codes):
        print((folder / "reference.txt").read_text()[-3000:])
        return 1
    rng = random.Random(args.seed)
    todo = ["kill"] * args.kills + ["save"] * args.save_kills + ["term"] * args.terms
    rng.shuffle(todo)
    events, previous, starts = [], None, 0
    while True:
        run = Run(killed, arguments, args.processes, log)
        starts += 1
        event = interrupt(run, todo[-1], killed / "checkpoints", rng) if todo else None
        if not todo or event is None:
            codes = run.wait(3600)
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
    differences = compare(reference, killed, args.steps)
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
        "differences": differences,
        "interruptions_left": len(todo),
    }
    for line in differences:
        print(line)
    print(json.dumps(summary))
    codes_are_right = set(summary["sigterm_exit_codes"]) <= {PREEMPTED}
    return 0 if codes_are_right and not differences and not todo else 1


if __name__ == "__main__":
    sys.exit(main())
