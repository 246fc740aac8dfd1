"""The assigner's warm-up: shortened with its run, kept by it, and said where it does not end."""

import dataclasses

import pytest
from etils import epath

from atss_jax.configs import beyond
from atss_jax.run import limits, preflight, recipe_changes, train, workdir_files
from tests import tiny

TASK_ALIGNED = {"assigner__name": "task_aligned", "model__backbone_norm": "frozen_bn"}


def make_config(folder, warmup_steps, num_steps, **changes):
    changes = {"assigner__warmup_steps": warmup_steps, "optim__num_steps": num_steps, **changes}
    return tiny.make_config(folder, **TASK_ALIGNED, **changes)


@pytest.mark.parametrize(("steps", "expected"), [(9_000, 3_000), (100, 33), (2, 1), (1, 1)])
def test_a_shorter_run_has_a_shorter_warm_up(steps, expected):
    found = limits.shortened(beyond.recipe("tal"), steps, of=90_000)
    assert (found.optim.num_steps, found.assigner.warmup_steps) == (steps, expected)


def test_epochs_become_steps_and_no_warm_up_stays_none():
    recipe = beyond.recipe("r50_v2")
    found = limits.shortened(recipe, 500, of=1_000)
    assert (found.optim.num_steps, found.optim.num_epochs) == (500, 0)
    assert found.assigner == recipe.assigner
    late = beyond.recipe("tal,r50_v2")
    assert limits.shortened(late, 500, of=60_000).assigner.warmup_steps == 250


@pytest.mark.parametrize(
    ("warmup_steps", "num_steps", "advice"),
    [
        (0, 10, ""),
        (9, 10, ""),
        (10, 10, "Set it below 10, such as 3"),
        (30_000, 20_000, "Set it below 20000, such as 6666"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_said(tmp_path, warmup_steps, num_steps, advice):
    config = make_config(tmp_path, warmup_steps, num_steps)
    found = preflight.warmup_advice(config, num_steps)
    assert advice in found and bool(found) == bool(advice)


class Enough(Exception):
    """Raised in place of what follows the advice."""


def test_a_start_says_it(tmp_path, monkeypatch, capsys):
    def stop(config, setup):
        raise Enough

    tiny.make_coco(tmp_path)
    monkeypatch.setattr(preflight, "check_first_batch", stop)
    config = make_config(tmp_path, 30_000, 20_000)
    with pytest.raises(Enough):
        train.train(config, epath.Path(tmp_path / "run"), with_evaluation=False)
    err = " ".join(capsys.readouterr().err.split())
    assert "config.assigner.warmup_steps=30000 in a run of 20000 steps: ATSS assigns" in err


def test_a_run_limited_in_time_keeps_its_warm_up(tmp_path):
    given = make_config(tmp_path, 30_000, 90_000, run__max_minutes=60.0)
    old = limits.shortened(given, 900, of=90_000)
    assert recipe_changes.with_chosen(given, old, training=True) == old
    assert recipe_changes.with_chosen(given, old) == given  # other modes train nothing
    # Without the limit, and with another assigner, the recipe says what it means.
    unlimited = dataclasses.replace(given, run=dataclasses.replace(given.run, max_minutes=0.0))
    for other in (unlimited, make_config(tmp_path, 0, 90_000, run__max_minutes=60.0)):
        kept = recipe_changes.with_chosen(other, old, training=True)
        assert kept.assigner == other.assigner
        changes = recipe_changes.locked_changes(old, kept, training=True)
        assert "assigner.warmup_steps" in [change.name for change in changes]


@pytest.mark.slow
def test_a_shortened_run_switches_and_resumes(folder, tmp_path, one_device, monkeypatch, capsys):
    """Half of the 100,000 steps are warm-up, so half of 4 are; the same command goes on so."""
    monkeypatch.setattr(limits, "steps_in", lambda *_, **__: 4)
    config = make_config(folder, 50_000, 100_000, run__max_minutes=60.0)
    workdir = epath.Path(tmp_path / "run")
    result = train.train(config, workdir, with_evaluation=False)
    assert "4 of 100000 steps fit, with assigner.warmup_steps=2" in capsys.readouterr().out
    kept = workdir_files.read_config(workdir)
    assert (kept.optim.num_steps, kept.assigner.warmup_steps) == (4, 2)
    monkeypatch.setattr(limits, "steps_in", lambda *_, **__: 7)
    assert train.train(config, workdir, with_evaluation=False) == result
    said = capsys.readouterr().out
    assert "run.max_minutes: 4 steps, assigner.warmup_steps=2, as chosen when the run began" in said
    plain = make_config(folder, 2, 4)
    train.train(plain, epath.Path(tmp_path / "plain"), with_evaluation=False)
    same = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "plain")]
    assert same[0] == same[1]
