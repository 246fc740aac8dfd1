"""What compares with golden numbers and exact sums: no NaN is lost in a maximum."""

import json

import numpy as np
import pytest

import golden_differences
from tests import golden_errors
from tests.oracles import run_reductions


def test_the_largest_error_of_a_test_may_be_nan(tmp_path):
    rows = [("tests/a.py::t[1]", 0.5), ("tests/a.py::t[2]", np.nan), ("tests/a.py::t[3]", 0.25)]
    rows += [("tests/b.py::t", 0.125), ("tests/b.py::t", 0.25)]
    lines = [json.dumps({"test": test, "error": error}) for test, error in rows]
    (tmp_path / "1.jsonl").write_text("\n".join(lines[:2]))
    (tmp_path / "2.jsonl").write_text("\n".join(lines[2:]))
    found = golden_differences.largest_errors(tmp_path)
    np.testing.assert_equal(found, {"a.py::t": np.nan, "b.py::t": 0.25})


@pytest.mark.parametrize("codes", [(0, 1), (-9, 0)])  # the second ended by a signal
def test_every_run_must_pass(monkeypatch, capsys, codes):
    left = list(codes)
    monkeypatch.setattr(golden_differences, "run", lambda kind, files: ({}, 1.0, left.pop(0)))
    monkeypatch.setattr("sys.argv", ["golden_differences.py"])
    assert golden_differences.main() == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["passed"] for run in summary.values()] == [code == 0 for code in codes]


def test_a_number_that_should_be_finite_is_noted_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv(golden_errors.FOLDER, str(tmp_path))
    monkeypatch.setattr(np.testing, "assert_allclose", lambda *_, **__: None)
    golden_errors.note_comparisons()
    np.testing.assert_allclose([1.0, np.nan, 2.0], [1.0, 1.0, 2.0])
    np.testing.assert_allclose([1.0, np.nan, 2.0], [1.0, np.nan, 4.0])  # not finite on purpose
    (file,) = tmp_path.iterdir()
    errors = [json.loads(line)["error"] for line in file.read_text().splitlines()]
    np.testing.assert_equal(errors, [np.nan, 0.5])


def test_the_largest_error_of_a_sum_may_be_nan():
    worst = run_reductions.largest({"a": 0.5}, {"a": np.nan, "b": 1.0})
    worst = run_reductions.largest(worst, {"a": 0.25, "b": 0.5, "c": 0.0})
    np.testing.assert_equal(worst, {"a": np.nan, "b": 1.0, "c": 0.0})
