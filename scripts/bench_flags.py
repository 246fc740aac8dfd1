r"""The training step under XLA's CPU switches, and torchvision's, in turns.

    python scripts/bench_flags.py --config=configs/quickstart.py
    python scripts/bench_flags.py --config=configs/atss_r50_fpn_1x.py \
      --set "data.buckets=((256,256),)" data.global_batch=2 --torchvision=other/python

A process for each set of switches compiles the step and then waits; all take a few steps each in
turn, so that a busy machine is unfair to none. Switches that the installed jaxlib does not know are
said. `scripts/bench_train.py` times one setting in more detail. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_train
from torchvision_training import TorchvisionTraining

YNN = "--xla_cpu_experimental_ynn_fusion_type="
SWITCHES = {
    "as installed": "",
    "JAX's default": f"{YNN}+reduce",
    "YNN without reductions": f"{YNN}-reduce",
    "YNN without convolutions": f"{YNN}-individual_convolution",
    "no YNN": YNN,
    "vectors of 256 bits": "--xla_cpu_prefer_vector_width=256",
    "vectors of 512 bits": "--xla_cpu_prefer_vector_width=512",
    "preset fast_runtime": "--xla_cpu_opt_preset=fast_runtime",
    "no fusion emitters": "--xla_cpu_use_fusion_emitters=false",
    "scheduled for memory": "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "oneDNN": "--xla_cpu_use_onednn=true --xla_cpu_experimental_onednn_custom_call=true",
    "loose products": "--xla_cpu_strict_dot_conv_math=false",
}
"""XLA_FLAGS by name. As installed: what the package sets by itself, or nothing."""


class Worker:
    """A process that has compiled the step with its switches.

    Args:
      flags: XLA_FLAGS.
      arguments: the recipe, as for `bench_train.read_recipe`.
    """

    def __init__(self, flags: str, arguments: list[str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--worker"],
            env={**os.environ, "XLA_FLAGS": flags},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, steps: int) -> list[float]:
        """Seconds of so many steps; none where the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(steps, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return []
        line = self._process.stdout.readline()
        return json.loads(line) if line else []

    def close(self) -> str:
        """Ends the process; returns the last line that it complained with."""
        _, said = self._process.communicate()
        lines = [line for line in said.splitlines() if line.strip()]
        return lines[-1] if self._process.returncode and lines else ""


def answer(options: argparse.Namespace) -> None:
    """The worker: runs as many steps as each line of stdin says."""
    with tempfile.TemporaryDirectory() as folder:
        values = bench_train.read_recipe(options.config, options.set)
        bench_train.use_synthetic_images(values, Path(folder))
        training = bench_train.OurTraining(values, Path(folder), with_warm=False)
        try:
            for line in sys.stdin:
                print(json.dumps(training.run(int(line))), flush=True)
        finally:
            training.close()


def start(runs: Mapping[str, tuple[str, list[str]]]) -> dict[str, Worker]:
    """Workers by name, each compiled; one after the other: together they would take all memory.

    Args:
      runs: name -> (XLA_FLAGS, arguments) of a `Worker`.
    """
    workers = {}
    for name, (flags, arguments) in runs.items():
        workers[name] = Worker(flags, arguments)
        workers[name].run(2)
        print(f"compiled: {name}", file=sys.stderr, flush=True)
    return workers


def take_turns(runs: Mapping[str, Any], steps: int, rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of steps by name and turn: a few of each in every round.

    Args:
      runs: with a method `run(steps)`, such as `Worker`s.
      steps: of a turn.
      rounds: turns of each.
    """
    turns: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            turns[name].append(run.run(steps))
    return turns


def measure(options: argparse.Namespace, arguments: list[str]) -> dict[str, dict]:
    """Median ms of a step for each set of switches."""
    names = options.only or list(SWITCHES)
    workers = start({name: (SWITCHES[name], arguments) for name in names})
    rival = None
    if options.torchvision:
        values = bench_train.read_recipe(options.config, options.set)["data"]
        height, width = values["buckets"][0]
        rival = TorchvisionTraining(options.torchvision, (height, width), values["global_batch"])
    runs = workers | ({"torchvision FCOS R-50": rival} if rival else {})
    turns = take_turns(runs, options.steps, options.rounds)
    problems = {name: worker.close() for name, worker in workers.items()}
    if rival:
        rival.close()
    return {
        name: {
            "step_ms": 1000 * statistics.median(times) if times else None,
            "fastest_ms": 1000 * min(times) if times else None,
            "problem": problems.get(name, ""),
        }
        for name, times in ((name, sum(turn, [])) for name, turn in turns.items())
    }


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(bench_train.ROOT / "configs/quickstart.py"))
    parser.add_argument("--set", nargs="+", default=[], metavar="GROUP.FIELD=VALUE")
    parser.add_argument("--only", nargs="+", choices=SWITCHES, help="names of switches")
    parser.add_argument("--steps", type=int, default=2, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--torchvision", metavar="PYTHON", help="also torchvision's FCOS R-50")
    parser.add_argument("--worker", action="store_true", help="used by itself")
    options = parser.parse_args()
    sys.path.insert(0, str(bench_train.ROOT))  # for `configs`
    if options.worker:
        return answer(options)
    changes = ["--set", *options.set] if options.set else []
    results = measure(options, [f"--config={options.config}", *changes])
    base = results.get("as installed", {}).get("step_ms")
    for name, row in results.items():
        if row["step_ms"] is None:
            print(f"{name:28}not run: {row['problem'][:90]}")
            continue
        share = f"{row['step_ms'] / base:8.3f}" if base else ""
        print(f"{name:28}{row['step_ms']:10.1f} ms{share}   fastest {row['fastest_ms']:.1f} ms")
    print(json.dumps({"config": options.config, "set": options.set, "rows": results}))


if __name__ == "__main__":
    main()
