"""The experiments of scripts/fault_matrix.py: some of each kind always, all of them when slow."""

import gc
import time

import pytest

import fault_cases
import fault_matrix

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
"""Orbax leaves unfinished coroutines and threads behind a save that fails."""

CASES = fault_cases.cases()
QUICK = [c for i, c in enumerate(CASES) if c[0] != "damage" or i % 12 == 0]
"""Every experiment that takes no second, and every twelfth with a damaged file."""


def check(cases):
    errors = {f"{group}: {name}": fault_matrix.run(action, 120.0) for group, name, action in cases}
    gc.collect()
    assert not {name: error for name, error in errors.items() if error is not None}


def test_there_are_enough_experiments():
    assert len(CASES) >= 80 and len({(group, name) for group, name, _ in CASES}) == len(CASES)


def test_a_sample_of_the_experiments():
    check(QUICK)


@pytest.mark.slow
def test_the_other_experiments():
    check([case for case in CASES if case not in QUICK])


@pytest.mark.parametrize("flips, blocks", [(12, 6), pytest.param(300, 100, marks=pytest.mark.slow)])
def test_random_damage_is_detected(flips, blocks):
    """Evaluation, prediction and export read by `restore_part`; a training resumes."""
    found = fault_matrix.damage_at_random(flips, blocks)
    assert found["silent_wrong"] == 0 and found["detected"] + found["harmless"] == flips + blocks
    assert found["detected"] >= 0.9 * (flips + blocks)


def test_an_experiment_that_hangs_is_ended_and_named():
    error = fault_matrix.run(lambda: time.sleep(30), 0.2)
    assert isinstance(error, fault_matrix.HangError)
