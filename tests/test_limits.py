"""Time limit, early stopping and the closing summary of a run."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from atss_jax import cli
from atss_jax.errors import UserError
from atss_jax.run import build, closing, evaluation_folder, limits, train, workdir_files
from atss_jax.runtime.config import RunConfig
from tests import tiny

COVERED = {"run.max_minutes", "run.patience"}
"""Fields of the tests below; see `test_field_effects.py`."""


def evaluations(*values: float, every: int = 10) -> dict[str, dict[str, float]]:
    return {str(every * (i + 1)): {"AP": value} for i, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((), False),
        ((0.3,), False),
        ((0.3, 0.2), False),
        ((0.3, 0.2, 0.3), True),  # as good as the best is not better
        ((0.3, 0.2, 0.31), False),
        ((-1.0, -1.0, -1.0), False),  # no object to find
    ],
)
def test_patience_counts_evaluations_since_the_best(values, ends):
    config = RunConfig(patience=2, eval_every=10)
    evaluated = evaluations(*values)
    reason = limits.Limits(config, time.monotonic()).reason(10 * len(values), evaluated)
    assert bool(reason) == ends
    assert not ends or f"step {limits.best_step(evaluated)}" in reason


def test_patience_needs_evaluations_and_a_best_checkpoint():
    with pytest.raises(UserError, match="counts evaluations"):
        RunConfig(patience=2, eval_every=0)
    with pytest.raises(UserError, match="best checkpoint"):
        RunConfig(patience=2, eval_every=10, keep_best=0)


def test_the_limit_leaves_time_for_the_last_evaluation():
    clock = limits.Limits(RunConfig(max_minutes=1.0), time.monotonic())
    assert clock.reason(1, {}) == "" and 58 < clock.seconds_left <= 60
    clock.resume({"seconds_in_all": 50.0})  # of earlier starts
    assert clock.reason(1, {}) == ""
    clock.evaluation_seconds = 12.0
    assert "run.max_minutes=1" in clock.reason(1, {})
    clock.evaluation_seconds = 0.0
    assert clock.reason(2, {})  # an end stays one


def test_a_resumed_run_knows_what_an_evaluation_takes():
    before = limits.Limits(RunConfig(max_minutes=1.0), time.monotonic())
    before.resume({"seconds_in_all": 50.0})
    before.evaluation_seconds = 12.0
    after = limits.Limits(RunConfig(max_minutes=1.0), time.monotonic())
    after.resume(before.known() | {"evaluated": {}})
    assert "run.max_minutes=1" in after.reason(1, {})


@pytest.mark.parametrize("every", [0, 1, 7, 1000])
@pytest.mark.parametrize("seconds", [3.0, 100.0, 5000.0])
def test_steps_and_evaluations_fit(seconds, every):
    per_step, per_evaluation = 0.7, 2.0
    steps = limits.steps_in(
        seconds,
        seconds_per_step=per_step,
        seconds_per_evaluation=per_evaluation,
        eval_every=every,
    )

    def cost(n):
        return n * per_step + per_evaluation * (1 + (n // every if every else 0))

    assert steps == 0 or cost(steps) <= seconds
    assert cost(steps + 4) > (1 - 2 * limits.MARGIN) * seconds


def test_no_time_is_no_step():
    found = limits.steps_in(-5.0, seconds_per_step=1.0, seconds_per_evaluation=1.0, eval_every=0)
    assert found == 0


def test_closing_table(tmp_path):
    tiny.make_coco(tmp_path, 6, "val")
    config = tiny.make_config(tmp_path)
    dataset = build.load_dataset(config, "val")
    metrics = {"AP": 0.25, "AR100": 0.5}
    for name in dataset.class_names:
        metrics |= {f"AP/{name}": 0.125, f"AR/{name}": -1.0}
    first, *rows = closing.class_rows(dataset, metrics)
    assert first == ("all", 6, len(dataset.annotations.id), 0.25, 0.5)
    assert sum(row.objects for row in rows) == first.objects
    assert all(row.images <= row.objects and row.recall is None for row in rows)
    evaluated = {"3": metrics | {"AP": 0.5}, "6": metrics}
    text = closing.closing_text(
        dataset,
        evaluated,
        step=6,
        ended="run.patience: why",
        training_seconds=61.0,
        seconds=3700.0,
    )
    assert "run.patience: why; ended at step 6" in text
    assert "best AP 0.500 at step 3; the table is of step 6" in text
    assert "6 steps in 0:01:01, 1:01:40 in all" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["x", "my photos (2)", "a'b$HOME`x`", "-x"])
def test_the_commands_of_the_end_can_be_copied(tmp_path, name):
    """A shell gives our command the folder and an image that is there."""
    data = tmp_path / name
    data.mkdir()
    tiny.make_coco(data, 2, "val")
    dataset = build.load_dataset(tiny.make_config(data), "val")
    evaluated = {"3": {"AP": 0.5}, "6": {"AP": 0.25}}
    text = closing.next_commands(name, dataset, evaluated, step=6)
    first, *commands = text.splitlines()
    assert first == "next:" and len(commands) == 3
    for command in commands:
        script = f"""atss() {{ printf '%s\\n' "$@"; }}\n{command}"""
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        verb, folder, *rest = done.stdout.splitlines()
        assert os.path.normpath(folder) == name and not folder.startswith("-")
        if verb == "predict":
            flags = cli.main_flags(verb, [folder, *rest])
            assert flags[1] == "--checkpoint=best" and os.path.isfile(rest[0])
        assert rest[-1:] == ([] if verb == "report" else ["--checkpoint=best"])


def test_atss_is_named_as_this_shell_finds_it(tmp_path, monkeypatch):
    """With the environment switched on, off, and without the command."""
    folder = tmp_path / "my env" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert closing.program_name() == f"'{folder}/python' -m atss_jax.cli"
    (folder / "atss").touch(mode=0o755)
    assert closing.program_name() == f"'{folder}/atss'"
    monkeypatch.chdir(tmp_path)
    assert closing.program_name() == "'my env/bin/atss'"
    monkeypatch.setenv("PATH", str(folder))
    assert closing.program_name() == "atss"


def test_of_many_classes_the_worst_are_shown():
    rows = [closing.ClassRow(f"{'long ' * 20}{i}", 1, 1, i / 100, 0.5) for i in range(50)]
    lines = closing.table([closing.ClassRow("all", 9, 50, 0.2, 0.4), *rows]).splitlines()
    assert "20 of 50 classes" in lines[0] and len(lines) == 23
    assert "0.190" in lines[-1] and max(map(len, lines)) <= 80


@pytest.mark.slow
def test_a_run_is_shortened_and_resumes_with_its_length(folder, tmp_path, one_device, monkeypatch):
    monkeypatch.setattr(limits, "steps_in", lambda *_, **__: 4)
    config = tiny.make_config(folder, run__max_minutes=60.0, optim__num_steps=100_000)
    workdir = epath.Path(tmp_path / "run")
    result = train.train(config, workdir, with_evaluation=True)
    assert result["steps"] == 4 and "ended_by" not in result
    assert workdir_files.read_config(workdir).optim.num_steps == 4
    monkeypatch.setattr(limits, "steps_in", lambda *_, **__: 7)
    again = train.train(config, workdir, with_evaluation=True)
    assert again == result
    whole = tiny.make_config(folder, optim__num_steps=4)
    train.train(whole, epath.Path(tmp_path / "plain"), with_evaluation=True)
    same = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "plain")]
    assert same[0] == same[1]  # the measured steps leave no trace


@pytest.mark.slow
def test_a_run_without_time_ends_with_a_result(folder, tmp_path, one_device, monkeypatch, capsys):
    config = tiny.make_config(folder, run__max_minutes=60.0)
    monkeypatch.setattr(
        limits.Limits, "seconds_left", property(lambda self: 1e6 if self.seconds < 1e9 else -1.0)
    )
    ends_at = iter([False] * 4 + [True] * 100)
    plain = limits.Limits.reason

    def reason(self, step, evaluated):
        if next(ends_at):
            self.resume({"seconds_in_all": 2e9})
        return plain(self, step, evaluated)

    monkeypatch.setattr(limits.Limits, "reason", reason)
    result = train.train(config, epath.Path(tmp_path / "run"), with_evaluation=True)
    assert 0 < result["steps"] < 6 and "max_minutes" in result["ended_by"]
    assert set(result["metrics"]) >= {"AP", "AR100"} and result["best_step"] == result["steps"]
    assert "atss predict" in capsys.readouterr().err


@pytest.mark.slow
def test_patience_ends_a_run_and_a_resume_keeps_it(folder, tmp_path, one_device, monkeypatch):
    config = tiny.make_config(
        folder, run__patience=2, run__eval_every=1, optim__learning_rate=1e-9, optim__num_steps=50
    )
    workdir = epath.Path(tmp_path / "run")
    result = train.train(config, workdir, with_evaluation=True)
    assert result["steps"] < 50 and "run.patience" in result["ended_by"]
    assert result["steps"] - result["best_step"] >= 2
    rows = (workdir / "metrics.jsonl").read_text()
    assert train.train(config, workdir, with_evaluation=True) == result
    assert (workdir / "metrics.jsonl").read_text() == rows
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, patience=3))
    write, seen = evaluation_folder.write_detections, []

    def record(*arguments):
        seen.append((workdir / "result.json").exists())
        return write(*arguments)

    monkeypatch.setattr(evaluation_folder, "write_detections", record)
    more = train.train(longer, workdir, with_evaluation=True)
    assert seen and not any(seen)  # new detections never lie beside the old result
    assert more["steps"] > result["steps"]
    assert json.loads((workdir / "result.json").read_text()) == more
    assert np.isfinite(more["wall_seconds"])
