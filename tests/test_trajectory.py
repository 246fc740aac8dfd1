"""24 iterations of training, equal to the official implementation in our convention.

The model, ATSS, the losses and the optimizer together, in float64 where the comparison is sharp
(golden/trajectory), for box and for point regression; float32 is held to its tolerances for boxes.
Float64 runs in a process of its own: the type is a global setting of JAX.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import golden_errors
from tests.conftest import with_devices

ROOT = Path(__file__).resolve().parents[1]


def run(shared, split, *, x64):
    environment = {**with_devices(1), "JAX_ENABLE_X64": "1" if x64 else "0"}
    script = ROOT / "tests" / "oracles" / "run_trajectory.py"
    command = [sys.executable, str(script), str(shared / "golden" / "trajectory"), split]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    golden_errors.note(errors["losses"])
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("split", ["open_a", "open_b"])
def test_float64(shared, split):
    errors = run(shared, split, x64=True)
    assert errors["losses"] <= 1e-9
    assert errors["grad_norm"] <= 1e-8
    assert errors["num_pos"] == 0
    assert errors["worst_delta"] <= 1e-6, errors["worst_delta_name"]


@pytest.mark.slow
def test_float32(shared):
    errors = run(shared, "open_a", x64=False)
    # Tolerances of golden/trajectory/README.md.
    assert errors["losses_over_tolerance"] <= 1
    assert errors["num_pos"] == 0
    assert errors["worst_head_delta"] <= 0.1
    assert errors["worst_delta"] <= 0.3
    assert errors["median_delta"] <= 0.05
