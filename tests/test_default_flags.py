"""The programs that users run: golden numbers and a short training with XLA's default flags.

All other tests compile with few optimisations, see conftest.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        "test_golden_networks.py",
        "test_golden_assignment.py",
        "test_losses.py",
        "test_quality_losses.py",
        "test_postprocess.py",
        "test_trajectory.py",
        "test_train_step.py",
        "test_train_folder.py",
        "test_train.py::test_resume_equals_the_uninterrupted_run",
    ],
)
def test_users_programs(tests):
    flags = os.environ["XLA_FLAGS"].split()
    kept = [flag for flag in flags if flag.startswith("--xla_cpu_experimental_ynn")]
    variables = {"ATSS_JAX_TEST_XLA": "default", "XLA_FLAGS": " ".join(kept)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{tests}"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
