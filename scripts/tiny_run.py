"""A training run of seconds as real processes, for scripts that interrupt it or break its ground.

A dozen drawn images, a narrow ResNet-18. A start is mostly tracing and compilation, so programs are
compiled with few optimisations, and Python's compiled modules are kept.
"""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from quick_compile import xla_flags

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
"""Exit code of a run that a signal stopped."""


def make_data(folder: Path) -> list[str]:
    """Draws the images; returns the recipe as flags, all of it within `folder`."""
    sys.path.insert(0, str(ROOT))
    from tests import tiny  # the images and the recipe of the tests

    tiny.make_coco(folder, 12, "train")
    tiny.make_coco(folder, 8, "val")
    return [
        *tiny.flags(folder),
        "--config.data.global_batch=2",
        "--config.eval.batch_size=2",
        "--config.model.backbone_norm=frozen_bn",  # no backward pass of the backbone:
        "--config.model.frozen_stages=5",  # a third of the compilation
    ]


def environment(folder: Path) -> dict[str, str]:
    """Of the processes: a CPU, quick compilation, Python's compiled modules in `folder`."""
    changed = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *xla_flags()]).strip(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
    }
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **changed}


def patched(folder: Path, code: str) -> dict[str, str]:
    """Variables of processes that run this code before anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), environment(folder)["PYTHONPATH"]])}


def command(workdir: Path, flags: Sequence[str], mode: str) -> list[str]:
    """A start of the command line."""
    start = [sys.executable, "-m", "atss_jax.main"]
    return [*start, f"--workdir={workdir}", f"--mode={mode}", *flags]


class Run:
    """A started run: one or several processes.

    Args:
      workdir: folder of the run.
      flags: of the command line, without the workdir.
      log: process 0 appends to it.
      mode: of `atss_jax.main`.
      processes: how many.
      different: further flags of one process, by its number.
      places: where each process is started; else all in the root of the repository.
      prefix: a command that starts Python, such as one that sets limits.
      variables: of the environment, besides.
    """

    def __init__(
        self,
        workdir: Path,
        flags: Sequence[str],
        log: Path,
        *,
        mode: str = "train_and_eval",
        processes: int = 1,
        different: dict[int, list[str]] | None = None,
        places: Sequence[Path] = (),
        prefix: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ):
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.processes = []
        self._offset = log.stat().st_size if log.exists() else 0
        self.begin = time.monotonic()
        for index in range(processes):
            extra = (different or {}).get(index, [])
            if processes > 1:
                extra = [
                    "--config.run.distributed=address",
                    f"--config.run.coordinator=localhost:{port}",
                    f"--config.run.num_processes={processes}",
                    f"--config.run.process_id={index}",
                    "--config.run.init_timeout=120",
                    *extra,
                ]
            with (log if index == 0 else log.with_suffix(f".{index}")).open("ab") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*prefix, *command(workdir, [*flags, *extra], mode)],
                        cwd=places[index] if places else ROOT,
                        stdout=output,
                        stderr=output,
                        env={**environment(log.parent), **(variables or {})},
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

    def send(self, number: int, only: int | None = None) -> None:
        """A signal to every process, or to one."""
        for index, process in enumerate(self.processes):
            if only in (None, index) and process.poll() is None:
                process.send_signal(number)

    def wait(self, timeout: float = 900.0) -> list[int]:
        """Exit codes of all processes; kills those that are late."""
        end = time.monotonic() + timeout
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def wait_for(self, pattern: str, timeout: float = 600.0) -> bool:
        """Waits until a line that matches is printed; False when the run ended before."""
        return self.wait_until(
            lambda: re.search(pattern, self.text(), re.M) is not None, timeout, pattern
        )

    def wait_until(
        self, is_true: Callable[[], bool], timeout: float, what: str, *, pause: float = 0.005
    ) -> bool:
        """Waits for a condition; False when the run ended before.

        Raises:
          TimeoutError: it is still not true; all processes are killed.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if is_true():
                return True
            if not self.is_running():
                return is_true()
            time.sleep(pause)
        text = self.text()
        self.send(signal.SIGKILL)
        raise TimeoutError(f"no {what!r} within {timeout} s:\n{text[-3000:]}")

    def last_step(self) -> int:
        """The last step of a progress line, or the one restored."""
        found = re.findall(r"^step (\d+)/|checkpoint of step (\d+)", self.text(), re.M)
        return max((int(a or b) for a, b in found), default=0)

    def restored_step(self) -> int:
        """The step of the checkpoint that the run went on from, or found to be its last."""
        pattern = r"(?:going on from the checkpoint of step |^all )(\d+)"
        found = re.search(pattern, self.text(), re.M)
        return int(found[1]) if found else 0


def load_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by name."""
    import jax
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    folder = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(folder, restore_args=as_numpy)  # on whatever devices saved
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(reference: Path, other: Path, num_steps: int) -> list[str]:
    """What differs between two finished runs: arrays, rows, detections; empty when nothing does."""
    a, b = load_state(reference, num_steps), load_state(other, num_steps)
    if a.keys() != b.keys():
        return [f"arrays differ: {sorted(a.keys() ^ b.keys())[:5]}"]
    found = [f"{k} differs" for k in a if a[k].tobytes() != b[k].tobytes()]
    for name in ("metrics.jsonl", "detections.json"):
        files = [workdir / name for workdir in (reference, other)]
        if len({file.read_bytes() if file.exists() else b"" for file in files}) > 1:
            found.append(f"{name} differs")
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_bytes().splitlines()]
    if [row["step"] for row in rows if "loss" in row] != list(range(1, num_steps + 1)):
        found.append("metrics.jsonl has steps twice, missing or out of order")
    return found
