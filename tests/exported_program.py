"""Runs scripts/run_exported.py as another project would, for the tests of exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).resolve().parents[1] / "scripts/run_exported.py"


def run_program(arguments, tmp_path, *, without=("atss_jax",)) -> subprocess.CompletedProcess:
    """The program, copied away and run where some packages cannot be imported."""
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    for name in without:
        blocker = tmp_path / name
        blocker.mkdir(exist_ok=True)
        (blocker / "__init__.py").write_text('raise ImportError("not here")\n')
        check = [sys.executable, "-c", f"import {name}"]
        assert subprocess.run(check, env=environment, capture_output=True).returncode != 0
    return subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), *map(str, arguments)],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def detections(folder, paths, tmp_path, *, without=("atss_jax",)) -> list[dict]:
    """What the program prints for readable images."""
    done = run_program([folder, *paths], tmp_path, without=without)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_equal(detector, paths, lines) -> int:
    """Every live detection is there once; those of equal scores may come in another order."""
    num_found = 0
    for path in paths:
        live = detector(path)
        mine = [line for line in lines if line["file"] == str(path)]
        assert len(mine) == len(live.scores)
        np.testing.assert_allclose([line["score"] for line in mine], live.scores, atol=1e-5)
        num_found += len(mine)
        for label, score, box in zip(live.labels, live.scores, live.boxes, strict=True):
            same = [
                line
                for line in mine
                if line["class"] == detector.class_names[label]
                and abs(line["score"] - score) < 1e-5
                and np.abs(np.subtract(line["box"], box)).max() < 1e-2
            ]
            assert same, (path, label, score, box)
            mine.remove(same[0])
    assert num_found > 0
    return num_found
