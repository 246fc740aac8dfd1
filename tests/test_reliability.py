"""What a resumed run does again: its sinks, its trace, its rates; and what stays off the screen."""

import concurrent.futures
import errno
import json
import os
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from atss_jax import files
from atss_jax.configs import quickstart
from atss_jax.errors import UserError
from atss_jax.run import (
    preflight,
    step_log,
    stop_signal,
    training_loop,
    training_setup,
    workdir_files,
)
from atss_jax.run.recipe_io import recipe_from_mapping
from atss_jax.runtime import compiled, metric_writer, screen
from atss_jax.training.train_step import TrainState

ROOT = Path(__file__).resolve().parents[1]

WANDB = """
import json, pathlib, types
def init(**arguments):
    folder = pathlib.Path(arguments["dir"])
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\\n")
    return types.SimpleNamespace(
        id=arguments["id"] or "run-1", log=lambda values, step: None, finish=lambda: None
    )
"""
"""A stand-in that writes down how it was called."""


def recipe(**run):
    values = quickstart.get_config().to_dict()
    values["run"].update(run)
    return recipe_from_mapping(values)


def test_wandb_gets_the_recipe_and_goes_on_in_one_run(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    preflight.check_sinks(recipe(wandb="shapes"))
    for start in (0, 7):
        writer = metric_writer.MetricWriter(
            tmp_path, keep_until=start, wandb_project="shapes", config={"seed": 3}
        )
        writer.write(start + 1, {"loss": 1.0})
        writer.close()
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["id"], second["id"]) == (None, "run-1")
    assert first["config"] == {"seed": 3} and second["resume"] == "allow"
    sys.modules.pop("wandb")


def test_wandb_that_is_missing_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="run.wandb='shapes'.*not installed"):
        preflight.check_sinks(recipe(wandb="shapes"))
    preflight.check_sinks(recipe())


@pytest.mark.parametrize("start, traced", [(0, (3, 6)), (4, (4, 6)), (6, ())])
def test_a_trace_is_taken_also_by_a_run_that_resumes_inside(tmp_path, monkeypatch, start, traced):
    loop = object.__new__(training_loop.Loop)
    loop._config, loop._workdir = recipe(profile_steps=(3, 6)), epath.Path(tmp_path)
    loop._is_profiling = False
    now, calls = [0], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(now[0]))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(now[0]))
    for now[0] in range(start, 9):
        loop._profile(now[0])
    assert tuple(calls) == traced


class Slow(metric_writer.Progress):
    """Two seconds for each line."""

    def report(self, step, batch_size, values):
        self._seconds += 2.0
        return 1.0


@pytest.mark.parametrize(
    ("fields", "reported", "mfu"),
    [({"log_every": 3}, [3, 6], [0.3, 0.6]), ({"log_every": 50, "max_bad_steps": 2}, [6], [0.9])],
    ids=["every three steps", "what is written before a line is due"],
)
def test_timing_counts_the_operations_of_all_steps(tmp_path, monkeypatch, fields, reported, mfu):
    monkeypatch.setattr(step_log, "peak_flops", lambda kind: 1000.0)
    writer = metric_writer.MetricWriter(epath.Path(tmp_path), keep_until=0)
    setup = tuple.__new__(training_setup.Setup, ())  # only bad steps need what it holds
    log = step_log.StepLog(recipe(**fields), epath.Path(tmp_path), setup, writer, Slow(0, 6), {})
    one, good = jnp.float32(1), jnp.bool_(True)
    for step, flops in enumerate([100.0, 100.0, 400.0, 400.0, 400.0, 400.0]):
        metrics = OrderedDict(loss=one, learning_rate=one, num_positives=one, is_finite=good)
        log.add(step, cast(Any, metrics), np.array([0]), 0.0, flops)
    log.flush(6)
    writer.close()
    rows = metric_writer.read_rows(tmp_path / "timing.jsonl")
    assert [row["step"] for row in rows] == reported and [row["mfu"] for row in rows] == mfu
    assert len(metric_writer.read_rows(tmp_path / "metrics.jsonl")) == 6
    assert log.total_seconds() == 2.0 * len(reported)


@pytest.mark.slow
def test_alarms_of_the_compiler_stay_off_the_screen(capfd, caplog, monkeypatch):
    """A sort of a constant that takes more than a second: XLA asks for a bug report."""
    monkeypatch.setattr(compiled, "LONG_SECONDS", 0.5)
    values = np.random.default_rng().normal(size=30_000).astype(np.float32)  # in no cache

    def function(x):
        return x + jnp.sort(jnp.asarray(values))[5]

    step = compiled.CompiledByShape(jax.jit(function), expected=1)
    step.program(jax.ShapeDtypeStruct((), jnp.float32))
    assert capfd.readouterr().err == ""
    assert "compiling still" in caplog.text


def test_what_to_predict_is_no_difference_to_the_run(tmp_path, capsys):
    workdir_files.claim_workdir(recipe(), epath.Path(tmp_path))
    values = quickstart.get_config().to_dict()
    values["predict"]["input"], values["eval"]["batch_size"] = ("a.jpg",), 3
    changes = workdir_files.open_workdir(recipe_from_mapping(values), epath.Path(tmp_path))
    assert {change.name for change in changes} == {"predict.input", "eval.batch_size"}
    printed = capsys.readouterr().err
    assert "eval.batch_size: 8 -> 3" in printed and "config.predict" not in printed


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    code = (
        "import resource, sys\n"
        "from atss_jax.files import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "write_whole(sys.argv[1], b'x' * 1000)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}
    files.write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_several_writers_of_one_file_do_not_meet(tmp_path):
    texts = [str(n) * 1000 for n in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: files.write_whole(tmp_path / "file", texts[n % 4]), range(80)))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() in texts


def test_progress_outlives_a_reader_that_is_gone(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        screen.say("step 1")
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            nobody.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())


def test_all_that_counts_is_saved_before_pictures_are_drawn(tmp_path, monkeypatch):
    """They read training images, and a mount that does not answer must not hold a stop."""
    loop = object.__new__(training_loop.Loop)
    order: list[str] = []

    def note(name, result=None):
        return lambda *_, **__: order.append(name) or result

    outcome = types.SimpleNamespace(metrics={"AP": 0.5}, detections=None)
    fake = types.SimpleNamespace
    loop.__dict__.update(
        _validation=fake(run=note("evaluate", outcome), dataset=None),
        _progress=fake(note=note("say"), pause=note("pause")),
        _signal=fake(enter=lambda phase, limit: order.append(f"{phase.split()[0]} {limit}")),
        _writer=fake(write=note("rows"), flush=note("flush")),
        _checkpointer=fake(attach=note("attach")),
        _evaluated={},
        _limits=fake(evaluation_seconds=0.0),
        _workdir=tmp_path,
    )
    monkeypatch.setattr(training_loop.train_step, "eval_variables", lambda state: {})
    write = note("detections")
    monkeypatch.setattr(training_loop.evaluation_folder, "write_detections", write)
    monkeypatch.setattr(training_loop.Loop, "_known", lambda self: {})
    monkeypatch.setattr(training_loop.Loop, "_show", note("pictures"))
    none = {"params": {}, "batch_stats": {}, "ema_params": None, "opt_state": ()}
    assert loop._evaluate(8, TrainState(step=jnp.int32(8), **none))
    saved = order.index("attach")
    assert order.index("rows") < order.index("flush") < order.index("detections") < saved
    assert order[saved + 1 : saved + 3] == ["pictures 10.0", "pictures"]


CHILD = """
import os, signal, sys, time
from atss_jax.run import stop_signal
{first}
stop = stop_signal.install()
{before}
os.kill(os.getpid(), signal.{name})
time.sleep({seconds})
{after}
"""
"""A process that gets a signal."""


DEFAULT_HANGUP = "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
"""Under nohup the tests, and so the process, would ignore it."""


def child(name, *, first=DEFAULT_HANGUP, before="", after="", seconds=20.0, prefix=()):
    code = CHILD.format(name=name, first=first, before=before, after=after, seconds=seconds)
    start = [*prefix, sys.executable, "-c", code]
    return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_the_first_step_ends_the_process(name):
    done = child(name)
    assert done.returncode == 75
    assert f"{name}: stopping; before the first step" in done.stderr


def test_nohup_is_respected():
    nohup = ["bash", "-c", "trap '' HUP; exec \"$@\"", "nohup"]
    assert child("SIGHUP", first="", seconds=0.5, prefix=nohup).returncode == 0


def test_a_complete_run_that_is_told_to_stop_has_code_0():
    done = child("SIGTERM", before="stop.enter('the run is complete', 0.0, code=0)")
    assert done.returncode == 0 and "stopped, exit code 0\n" in done.stderr


def test_a_signal_while_python_ends_changes_no_code():
    """The handlers of the end stand until the very last."""
    late = (
        "stop.enter('the run is complete', None)\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):\n"
        "        kill(me, number)\n"
        "last = Last()\n"
        "sys.modules['__main__'].last = last\n"
    )
    assert child("SIGTERM", before=late, seconds=0.2).returncode == 0


def test_an_action_that_blocks_does_not_hold_the_end():
    done = child("SIGTERM", before="stop.at_leaving(lambda: time.sleep(100))")
    assert done.returncode == 75 and stop_signal.LEAVING_SECONDS < 5


@pytest.mark.parametrize("number, expected", [(errno.EROFS, UserError), (errno.ENOSPC, OSError)])
def test_a_folder_that_is_read_only_is_said_before_the_work(
    tmp_path, monkeypatch, number, expected
):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir_files.tempfile, "TemporaryFile", refuse)
    message = "--workdir=.*written to" if number == errno.EROFS else "No space"
    with pytest.raises(expected, match=message):
        workdir_files.make_folder(epath.Path(tmp_path), "--workdir")
