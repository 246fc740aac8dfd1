"""Whole runs of the tiny recipe: files, resume, refusals, kills, several processes."""

import gc
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import tiny_run
from atss_jax.run import step_log, stop_signal, train, training_loop, validation
from atss_jax.runtime import checkpoint_record
from atss_jax.runtime.metric_writer import read_rows
from tests import tiny
from tests.conftest import with_devices

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

MANY = [
    "--config.optim.num_steps=100000",
    "--config.optim.learning_rate=0.0001",
    "--config.run.checkpoint_every=10",
]
"""Arguments of a run that ends only when it is stopped; rounding grows slowly over its steps."""

CHEAP = ["--config.model.backbone_norm=frozen_bn", "--config.model.frozen_stages=5"]
"""No backward pass of the backbone: for tests of what happens around the step."""


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """(config, workdir, result) of an uninterrupted run."""
    config = tiny.make_config(folder, optim__ema_decay=0.9, run__report=True)
    workdir = epath.Path(tmp_path_factory.mktemp("runs") / "whole")
    return config, workdir, train.train(config, workdir, with_evaluation=True)


def states(workdir):
    """(step, arrays by name) of the newest checkpoint."""
    steps = [int(p.name) for p in (Path(workdir) / "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps), tiny_run.load_state(Path(workdir), max(steps))


def assert_same_states(first, second):
    """The newest checkpoints of two workdirs are equal bit for bit."""
    (step, expected), (other_step, other) = states(first), states(second)
    assert step == other_step and expected.keys() == other.keys()
    for name in expected:
        np.testing.assert_array_equal(other[name], expected[name], err_msg=name)


def test_workdir_holds_what_the_readme_says(finished):
    _, workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert set(result) >= {"metrics", "steps", "wall_seconds", "images_per_s", "device_kind"}
    assert result["steps"] == 6 and 0 <= result["metrics"]["AP"] <= 1
    assert result["versions"]["jax"] == jax.__version__
    rows = read_rows(workdir / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows if "eval/AP" in r] == [6]
    pictures = sorted(p.name for p in (workdir / "pictures").iterdir())
    assert pictures == ["curves.png", "detections_0.jpg", "detections_1.jpg", "positives_0.jpg"]
    assert isinstance(json.loads((workdir / "detections.json").read_text()), list)
    report = (workdir / "report.html").read_text()
    assert "<td>evaluated</td><td>step 6, split val" in report and result["ended"] in report


def test_eval_mode_gives_the_same_numbers(finished):
    config, workdir, result = finished
    outcome = validation.evaluate_workdir(config, workdir)
    assert outcome.metrics == result["metrics"]


def test_another_recipe_is_refused_and_shown(finished, folder):
    _, workdir, _ = finished
    other = tiny.make_config(folder, optim__ema_decay=0.9, optim__learning_rate=0.5)
    with pytest.raises(ValueError, match=r"config.optim.learning_rate: 0.002 -> 0.5"):
        train.train(other, workdir, with_evaluation=False)


def test_finished_run_has_nothing_to_do(finished, capsys):
    config, workdir, result = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = train.train(config, workdir, with_evaluation=True)
    assert again["metrics"] == result["metrics"]
    assert (workdir / "metrics.jsonl").read_text() == before
    printed = capsys.readouterr().err
    assert "all 6 steps are done already" in printed and "compiled in" not in printed


def test_resume_equals_the_uninterrupted_run(finished, monkeypatch, tmp_path):
    """Stopped after three steps, in the middle of a save interval, and started again."""
    config, whole, _ = finished
    workdir = epath.Path(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.Loop, "_told_to_stop", lambda self, step: step == 3)
        with pytest.raises(train.Preempted, match="step 3"):
            train.train(config, workdir, with_evaluation=True)
    train.train(config, workdir, with_evaluation=True)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_states(whole, workdir)


def test_stop_in_the_last_evaluation_is_no_result(finished, monkeypatch, tmp_path):
    """The steps are saved before it; the same command evaluates and ends as the whole run."""
    config, whole, result = finished
    workdir = epath.Path(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(validation.Validation, "run", lambda *_, **__: None)
        with pytest.raises(train.Preempted, match="step 6"):
            train.train(config, workdir, with_evaluation=True)
    assert not (workdir / "result.json").exists() and states(workdir)[0] == 6
    again = train.train(config, workdir, with_evaluation=True)
    assert again["metrics"] == result["metrics"]
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_pictures_that_fail_do_not_end_the_run(finished, monkeypatch, tmp_path, caplog):
    config, whole, result = finished
    workdir = epath.Path(tmp_path / "run")
    shutil.copytree(whole, workdir)
    record = checkpoint_record.read_record(workdir / "checkpoints", 6)
    assert record is not None
    record["run"]["evaluated"] = {}
    checkpoint_record.write_record(workdir / "checkpoints", 6, record)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(training_loop.pictures, "after_evaluation", fail)
    assert train.train(config, workdir, with_evaluation=True)["metrics"] == result["metrics"]
    assert "pictures of step 6 are not complete" in caplog.text


def test_a_failed_start_makes_no_workdir(folder, tmp_path):
    bad = tmp_path / "weights.npz"
    bad.write_bytes(b"garbage")
    for change in (
        {"model__init_from": str(bad)},
        {"data__val_annotations": str(tmp_path / "missing.json")},
    ):
        config = tiny.make_config(folder, **change)
        with pytest.raises((ValueError, OSError)):
            train.train(config, epath.Path(tmp_path / "run"), with_evaluation=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint_falls_back_and_ends_the_same(finished, tmp_path, caplog):
    """Orbax leaves unfinished coroutines behind a failed read; they are collected here."""
    config, whole, _ = finished
    workdir = epath.Path(tmp_path / "damaged")
    shutil.copytree(whole, workdir)
    newest = Path(workdir) / "checkpoints" / "6" / "default"
    for file in newest.rglob("*"):
        if file.is_file() and "d" in file.parts[-2:]:
            file.write_bytes(b"damaged")
    train.train(config, workdir, with_evaluation=True)
    assert "checkpoint 6 is damaged" in caplog.text
    assert (workdir / "checkpoints" / "6.damaged").exists()
    assert_same_states(whole, workdir)
    gc.collect()


def test_run_that_diverges_stops_and_keeps_what_reproduces_it(folder, tmp_path):
    """The first update is finite but absurd; every later one is skipped."""
    config = tiny.make_config(
        folder,
        model__backbone_norm="frozen_bn",
        model__frozen_stages=5,
        optim__learning_rate=1e30,
        run__max_bad_steps=3,
    )
    workdir = epath.Path(tmp_path / "diverged")
    with pytest.raises(step_log.NonFiniteError, match="3 steps in a row up to 4"):
        train.train(config, workdir, with_evaluation=False)
    step, arrays = states(workdir)
    assert step >= 2 and all(np.isfinite(array).all() for array in arrays.values())
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["is_finite"] for row in rows[:4]] == [1, 0, 0, 0]
    about = json.loads((workdir / "bad_steps" / "step_3_process_0.json").read_text())
    assert len(about["image_ids"]) == 8 and set(about["image_ids"]) <= set(range(100, 112))
    kept = np.load(workdir / "bad_steps" / "step_3_process_0.npz")
    assert kept["image"].shape == (8, 64, 96, 3)


STARTED = []


@pytest.fixture(autouse=True)
def no_process_left():
    """A failed test leaves no run behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def start(folder, workdir, *extra, devices=1, stderr=subprocess.PIPE):
    process = subprocess.Popen(
        [sys.executable, "-m", "atss_jax.main", f"--workdir={workdir}", "--mode=train"]
        + [*tiny.flags(folder), *extra],
        cwd=ROOT,
        env=with_devices(devices),
        stderr=stderr,
        text=True,
    )
    STARTED.append(process)
    return process


def first_number(text):
    found = re.search(r"\d+", text)
    assert found, text
    return int(found[0])


def wait_for_line(process, pattern):
    for line in process.stderr:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{pattern} never appeared; exit code {process.wait()}")


def test_sigkill_loses_little_and_sigterm_nothing(folder, tmp_path):
    """SIGKILL goes on from a whole checkpoint; SIGTERM saves and exits with its code in seconds."""
    workdir = tmp_path / "run"
    many = [*MANY, *CHEAP, "--config.run.async_checkpoints=True"]
    process = start(folder, workdir, *many)
    wait_for_line(process, r"^step 30/")
    process.kill()
    process.communicate()
    written = len(read_rows(workdir / "metrics.jsonl"))
    process = start(folder, workdir, *many)
    line = wait_for_line(process, "going on from the checkpoint of step")
    assert first_number(line) >= written - 20  # one save, perhaps, was under way
    wait_for_line(process, r"^step \d+/")
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == stop_signal.PREEMPTED_EXIT_CODE, errors
    assert time.monotonic() - begin < 20
    saved = first_number(errors.split("saved at step ")[1])
    assert states(workdir)[0] == saved
    steps = [row["step"] for row in read_rows(workdir / "metrics.jsonl")]
    assert steps == list(range(1, saved + 1))


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_two(folder, workdir, *extra, devices):
    port = free_port()
    return [
        start(
            folder,
            workdir,
            "--config.run.distributed=address",
            f"--config.run.coordinator=localhost:{port}",
            "--config.run.num_processes=2",
            f"--config.run.process_id={index}",
            *extra,
            devices=devices,
        )
        for index in range(2)
    ]


def terminate(*processes):
    """SIGTERM for all of them, and their exit code."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == stop_signal.PREEMPTED_EXIT_CODE, errors[-3000:]


def test_two_processes_of_four_devices_are_one_of_eight(folder, tmp_path):
    """One of two dies, the other ends itself, both go on; also SIGTERM, FSDP, other numbers.

    Of the backbone only the last stage is trained: the gradients of all of it are compared, between
    numbers of devices, in test_train_step.
    """
    recipe = [*MANY, "--config.model.frozen_stages=4"]
    pair = start_two(folder, tmp_path / "two", *recipe, devices=4)
    wait_for_line(pair[0], "^step 30/")
    pair[1].kill()
    begin = time.monotonic()  # the other notices by a heartbeat; meanwhile:
    one = start(folder, tmp_path / "one", *recipe, "--config.run.fsdp=True", devices=8)
    wait_for_line(one, "^step 20/")
    terminate(one)
    pair[0].communicate(timeout=max(1.0, begin + 120 - time.monotonic()))
    assert pair[0].returncode != 0

    pair = start_two(folder, tmp_path / "two", *recipe, devices=4)
    line = wait_for_line(pair[0], "going on from the checkpoint of step")
    assert first_number(line) >= 20  # the save of 30 may have been under way
    wait_for_line(pair[0], r"^step \d+/")
    terminate(*pair)
    saved, arrays = states(tmp_path / "two")  # read by one process
    assert all(np.isfinite(array).all() for array in arrays.values())
    ones, twos = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in twos] == list(range(1, saved + 1))
    assert len(ones) >= 20
    for a, b in zip(ones[:20], twos[:20], strict=True):
        assert a["num_positives"] == b["num_positives"]
        for name in ("loss", "loss_cls", "loss_box", "loss_centerness"):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5)

    moved = start(folder, tmp_path / "two", *recipe, "--config.run.fsdp=True", devices=8)
    wait_for_line(moved, f"going on from the checkpoint of step {saved}")
    moved.kill()
