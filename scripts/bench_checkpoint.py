r"""Seconds of a save and a restore with and without checksums, and of a restart.

    python scripts/bench_checkpoint.py --folder=/tmp/bench_checkpoint

The state is that of a ResNet-50 ATSS with momentum (random numbers), the restart that of the
quickstart's network: from the start of the process to the first progress line, with an empty and
with a filled compilation cache. Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from etils import epath

from atss_jax.configs import atss_r50_fpn_1x
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.runtime import checkpoint_record
from atss_jax.runtime.checkpoint import Checkpointer
from tiny_run import PREEMPTED, Run, make_data

NUM_CLASSES = 80
UNCHECKED: dict[str, Callable[..., Any]] = {
    "checksums": lambda folder: {},
    "verify": lambda folder, step: True,
}
"""In place of what sums."""


def r50_state() -> dict[str, Any]:
    """Parameters, statistics and momentum with the shapes of the R-50 recipe."""
    recipe = atss_r50_fpn_1x.recipe()
    model = DetectorNetwork(recipe.model, NUM_CLASSES, recipe.anchors.num_per_location)
    shapes = jax.eval_shape(lambda: init_variables(model, recipe.data.buckets[0], 0))
    keys = iter(jax.random.split(jax.random.key(0), 2000))

    def random(tree: Any) -> Any:
        return jax.tree.map(lambda s: jax.random.normal(next(keys), s.shape, s.dtype), tree)

    params = random(shapes["params"])
    statistics_ = random(shapes.get("batch_stats", {}))
    momentum = random(shapes["params"])
    return {
        "params": params,
        "batch_stats": statistics_,
        "opt_state": momentum,
        "step": jnp.int32(1),
    }


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Medians over saves and restores, with and without checksums by turns."""
    state = r50_state()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    times: dict[str, list[float]] = {}

    def timed(name: str, action: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        action()
        times.setdefault(name, []).append(time.perf_counter() - begin)

    for number in range(repeats + 1):
        for is_checked in (True, False):
            kind = "checked" if is_checked else "unchecked"
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.ExitStack() as stack:
                for name, nothing in () if is_checked else UNCHECKED.items():
                    stack.enter_context(mock.patch.object(checkpoint_record, name, nothing))
                keeper = Checkpointer(epath.Path(folder))
                timed(f"save {kind}", lambda k=keeper: k.save(1, state, wait=True))
                timed(f"restore {kind}", lambda k=keeper: k.restore_latest(abstract))
                keeper.close()
            if is_checked:
                timed("sums", lambda: checkpoint_record.checksums(epath.Path(folder) / "1"))
        if number == 0:
            times.clear()  # the first round warms up
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"MiB": size / 2**20, **{k: statistics.median(v) for k, v in times.items()}}


def restarts(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds from the start of a process to its first progress line."""
    own = (
        "--config.data.buckets",
        "--config.data.short",
        "--config.data.max_long",
        "--config.model",
    )
    flags = [flag for flag in make_data(folder / "data") if not flag.startswith(own)]
    flags += ["--config.run.log_every=1", "--config.optim.num_steps=100000"]
    flags += ["--config.data.global_batch=8"]
    variables = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    seconds = []
    for _ in range(repeats + 1):
        run = Run(folder / "run", flags, folder / "log", mode="train", variables=variables)
        run.wait_for(r"^step \d+/")
        seconds.append(time.monotonic() - run.begin)
        run.send(signal.SIGTERM)
        if run.wait() != [PREEMPTED]:
            raise RuntimeError(run.text()[-2000:])
    return {"first start": seconds[0], "restart": statistics.median(seconds[1:])}


def main() -> int:
    """Runs both; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", default="", help="on the disk to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=3)
    args = parser.parse_args()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder or None) as name:
        found = measure(Path(name) / "state", args.repeats)
        if args.restarts:
            found |= restarts(Path(name), args.restarts)
    for what in ("save", "restore"):
        plain, checked = found[f"{what} unchecked"], found[f"{what} checked"]
        print(f"{what:12} {plain:6.2f} s, with checksums {checked:6.2f} s")
    print(
        f"{'sums':12} {found['sums']:6.2f} s: {found['sums'] / found['save checked']:.1%} of a save"
    )
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
