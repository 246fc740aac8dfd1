"""Experiments of `fault_matrix.py` that need no process of their own: seconds for all of them.

Each is a function that raises AssertionError, or a kind of it from `fault_damage`, where it fails.
"""

import errno
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
from etils import epath

from atss_jax import files
from atss_jax.configs import quickstart
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import coco_metrics
from atss_jax.run import preflight, stop_signal, workdir_files, workdir_lock
from atss_jax.run.recipe_io import recipe_from_mapping
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.runtime.metric_writer import JsonLines, read_rows
from atss_jax.training.train_step import TrainState
from fault_damage import (
    DAMAGE,
    LostError,
    all_damaged,
    clock,
    damaged,
    disk_full,
    failing_read,
    files_of,
    folder_of,
    missing,
    refused,
)
from fault_peers import lost_peer, port_in_use, processes

Case = tuple[str, str, Callable[[], None]]
"""Group, name and the experiment."""


def odd_name(name: str) -> None:
    """Characters of a pattern are refused before anything is saved."""
    with folder_of() as folder:
        refused(lambda: Checkpointer(epath.Path(folder / name)))
        assert not folder.exists()


def lock_of(about: Any, *, is_refused: bool) -> None:
    """A lock file with this content, before a start."""
    with tempfile.TemporaryDirectory() as name:
        text = about if isinstance(about, str) else json.dumps(about)
        (Path(name) / "run.lock").write_text(text)

        def start() -> None:
            with workdir_lock.hold(epath.Path(name)):
                workdir_lock.check_still_held(epath.Path(name))

        with mock.patch.object(workdir_lock, "PATIENCE_SECONDS", 0.1):
            if is_refused:
                refused(start)
                assert (Path(name) / "run.lock").read_text() == text
            else:
                start()


def lock_lost(change: Callable[[Path], Any]) -> None:
    """A workdir that vanished or was taken over stops the run before it writes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        with workdir_lock.hold(epath.Path(folder)):
            change(folder)
            refused(lambda: workdir_lock.check_still_held(epath.Path(folder)), RuntimeError)


def two_starts() -> None:
    """Of eight starts at once over a dead lock, one gets the workdir; it waits until all tried."""
    with tempfile.TemporaryDirectory() as name:
        dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "time": 0}
        (Path(name) / "run.lock").write_text(json.dumps(dead))
        (read_outcome, write_outcome), (wait_end, release_end) = os.pipe(), os.pipe()
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                os.close(release_end)
                outcome = b"!"  # any other error
                try:
                    with workdir_lock.hold(epath.Path(name)):
                        outcome = b""
                        os.write(write_outcome, b"1")
                        os.read(wait_end, 1)  # returns when the parent closes its end
                except UserError:
                    outcome = b"0"
                finally:
                    os.write(write_outcome, outcome)
                    os._exit(0)
            children.append(child)
        outcomes = b"".join(os.read(read_outcome, 1) for _ in children)
        os.close(release_end)
        for child in children:
            os.waitpid(child, 0)
        for end in (read_outcome, write_outcome, wait_end):
            os.close(end)
        assert sorted(outcomes) == sorted(b"00000001"), outcomes


def damaged_rows(change: Callable[[list[bytes]], list[bytes]], kept: int, is_said: bool) -> None:
    """metrics.jsonl: no good row is lost, and damage is kept and said."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "metrics.jsonl"
        lines = [json.dumps({"step": n, "loss": 1.0}).encode() + b"\n" for n in range(1, 11)]
        path.write_bytes(b"".join(change(lines)))
        JsonLines(path, keep_until=10).close()
        if len(read_rows(path)) != kept:
            raise LostError(f"{len(read_rows(path))} rows instead of {kept}")
        assert (Path(name) / "metrics.jsonl.bad-1").exists() == is_said


def half_written(write: Callable[[Path], None]) -> None:
    """A write that fails half-way leaves the old file."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_text("old")
        with mock.patch.object(
            type(epath.Path(name)), "replace", side_effect=OSError(errno.ENOSPC, "no space")
        ):
            refused(lambda: write(path), OSError)
        assert path.read_text() == "old"


def workdir_with(contents: dict[str, str], action: Callable[[epath.Path], Any]) -> None:
    """A workdir that does not fit is refused, and nothing in it is changed."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "checkpoints" / "9").mkdir(parents=True)
        for file, content in contents.items():
            (Path(name) / file).write_text(content)
        refused(lambda: action(epath.Path(name)), ValueError)
        assert {p.name: p.read_text() for p in Path(name).iterdir() if p.is_file()} == contents


def claim(workdir: epath.Path) -> None:
    """What a training start does with the folder."""
    recipe = recipe_from_mapping(quickstart.get_config().to_dict())
    workdir_files.claim_workdir(recipe, workdir)


def metrics_of(change: dict[str, Any]) -> None:
    """Results that are not finite are refused: pycocotools takes a NaN IoU for a match."""
    truth = {
        "images": [{"id": 1, "height": 9, "width": 9}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
            | {"iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    found = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5} | change
    names: dict[str, Any] = {"class_names": ("a",), "category_ids": (1,)}
    refused(lambda: coco_metrics(truth, [found], **names), ValueError)


def state_with(value: float, part: str) -> None:
    """A state with such a number is refused, and the array is named."""
    good = {"a": jnp.ones(5)}
    parts = {"params": good, "batch_stats": good, "ema_params": good}
    parts[part] = {"a": jnp.array([1.0, value])}
    state = TrainState(step=jnp.int32(1), opt_state=(), **parts)
    assert preflight.non_finite_names(state) == [f"['{part}']['a']"]
    refused(lambda: preflight.check_finite(state, "it"))


def row_with(value: float) -> None:
    """A row with such a number is valid JSON."""
    with tempfile.TemporaryDirectory() as name:
        rows = JsonLines(Path(name) / "m.jsonl", keep_until=0)
        rows.write({"step": 1, "loss": value})
        rows.close()
        assert read_rows(Path(name) / "m.jsonl") == [{"step": 1, "loss": None}]


def signals(numbers: list[int], burst: float, is_interrupt: bool) -> None:
    """A burst is one wish to stop; a late Ctrl-C acts at once."""
    stop = stop_signal.StopSignal()
    try:
        with mock.patch.object(stop_signal, "BURST_SECONDS", burst):
            try:
                for number in numbers:
                    signal.raise_signal(number)
                assert not is_interrupt
            except KeyboardInterrupt:
                assert is_interrupt
        assert stop.received
        refused(stop.check, stop_signal.Preempted)
    finally:
        stop.restore()


def cases() -> list[Case]:
    """All experiments, in the order of the table."""
    host, me = socket.gethostname(), os.getpid()
    with folder_of(3, 6) as folder:
        names = [path.relative_to(folder).as_posix() for path in files_of(folder, 6)]
        names = [n for n in names if (folder / n).stat().st_size > 0]
    found: list[Case] = []

    def add(group: str, name: str, action: Callable, *arguments: Any, **keywords: Any) -> None:
        found.append((group, name, lambda: action(*arguments, **keywords)))

    for name in names:
        for kind in DAMAGE:
            add("damage", f"{kind}: {name}", damaged, name, kind)
        add("damage", f"deleted: {name}", missing, name)
    add("damage", "every checkpoint", all_damaged)
    for failures in (1, 2, 99):
        add("storage", f"{failures} reads fail", failing_read, failures)
    add("storage", "disk full in a save", disk_full)
    for seconds in (-86400.0, 4 * 86400.0):
        add("clock", f"jumps by {seconds:.0f} s", clock, seconds)
    for name in ("a[1]", "a]", "a*", "a?", "a\\b"):
        add("names", f"workdir {name}", odd_name, name)
    for name, about, is_refused in (
        ("dead process", {"host": host, "pid": 2**22 + 1}, False),
        ("number given again", {"host": host, "pid": 1, "started": "another boot:1"}, False),
        ("own number, earlier container", {"host": host, "pid": me}, False),
        ("silent other host", {"host": "elsewhere", "pid": 1}, False),
        ("empty", "", False),
        ("garbage", "\x00[{", False),
        ("living process", {"host": host, "pid": os.getppid()}, True),
    ):
        add("two runs", f"lock: {name}", lock_of, about, is_refused=is_refused)
    add("two runs", "eight starts at once", two_starts)
    add("two runs", "lock deleted", lock_lost, lambda f: (f / "run.lock").unlink())
    add("two runs", "workdir moved away", lock_lost, lambda f: f.rename(f.with_name("moved")))
    other = json.dumps({"host": "elsewhere", "pid": 1})
    add("two runs", "taken over", lock_lost, lambda f: (f / "run.lock").write_text(other))
    for name, change, kept, is_said in (
        ("torn last line", lambda r: [*r[:-1], r[-1][:9]], 9, False),
        ("a damaged byte", lambda r: [*r[:4], b"\x01" + r[4], *r[5:]], 9, True),
        ("zeros in a row", lambda r: [*r[:4], bytes(9) + b"\n", *r[5:]], 9, True),
        ("row without step", lambda r: [*r[:4], b'{"a": 1}\n', *r[5:]], 9, True),
        ("a list", lambda r: [*r[:4], b"[1, 2]\n", *r[5:]], 9, True),
        ("invalid UTF-8", lambda r: [*r[:4], b"\xff\xfe\n", *r[5:]], 9, True),
        ("deep nesting", lambda r: [*r[:4], b"[" * 90000 + b"\n", *r[5:]], 9, True),
    ):
        add("metrics.jsonl", name, damaged_rows, change, kept, is_said)
    add("half files", "text", half_written, lambda p: files.write_whole(p, "new"))
    add("half files", "JSON", half_written, lambda p: workdir_files.write_json(epath.Path(p), {}))
    for name, text in (("cut", '{"data": '), ("empty", ""), ("a list", "[]"), ("text", '"a"')):
        add("workdir", f"config.json {name}", workdir_with, {"config.json": text}, claim)
    add("workdir", "config.json missing", workdir_with, {}, claim)
    for name, text in (
        ("cut", '{"class_names": ["a'),
        ("a list", "[]"),
        ("other order", '{"class_names": ["b", "a"], "category_ids": [1, 2]}'),
        ("a class more", '{"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}'),
        ("other ids", '{"class_names": ["a", "b"], "category_ids": [7, 8]}'),
    ):
        add(
            "replaced data", f"classes.json {name}", workdir_with, {"classes.json": text},
            lambda w: workdir_files.write_classes(w, ("a", "b"), (1, 2)),
        )  # fmt: skip
    nan, inf = float("nan"), float("inf")
    for name, change in (
        ("NaN in a box", {"bbox": [nan, 1, 5, 5]}),
        ("infinite box", {"bbox": [1, 1, inf, 5]}),
        ("NaN score", {"score": nan}),
    ):
        add("numbers", f"results: {name}", metrics_of, change)
    for value in (nan, inf, -inf):
        add("numbers", f"{value} in the loss", row_with, value)
        for part in ("params", "batch_stats", "ema_params"):
            add("numbers", f"{value} in {part}", state_with, value, part)
    term, interrupt = signal.SIGTERM, signal.SIGINT
    add("signals", "one", signals, [term], 5.0, False)
    add("signals", "burst", signals, [term, term, interrupt, term], 5.0, False)
    add("signals", "late SIGTERM", signals, [term, term], -1.0, False)
    add("signals", "late Ctrl-C", signals, [interrupt, interrupt], -1.0, True)
    add("processes", "equal", processes, ["a", "a", "a"], 3, None)
    add("processes", "other data on one", processes, ["a", "a", "b"], 3, UserError)
    add("processes", "one does not come", processes, ["a"], 2, RuntimeError)
    add("processes", "one fails", lost_peer, {"failed": "2 process 1: no file"}, 2)
    add("processes", "one vanishes", lost_peer, {"beat/1": "7"}, 75)
    add("processes", "port in use", port_in_use)
    return found
