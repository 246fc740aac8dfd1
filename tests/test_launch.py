"""The launch scripts, with a stand-in for Python: which exit codes go on, and signals."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "scripts" / "launch"


def stand_in(folder, *codes):
    """An interpreter that ends with the given codes, one a start, and counts its starts."""
    fake = folder / "python"
    lines = "\n".join(f"{n}) exit {code};;" for n, code in enumerate(codes, 1))
    fake.write_text(
        f"#!/bin/bash\necho x >> {folder}/count\n"
        f"case $(wc -l < {folder}/count) in\n{lines}\n*) exit 99;;\nesac\n"
    )
    fake.chmod(0o755)
    return {"PATH": os.environ["PATH"], "PYTHON": str(fake), "RESTART_DELAY": "0"}


def starts(folder):
    return len((folder / "count").read_text().splitlines())


@pytest.mark.parametrize(
    "codes, last",
    [
        ((0,), 0),
        ((2,), 2),
        ((75, 75, 0), 0),
        ((1, 0), 0),
        ((137, 75, 1, 2), 2),
        ((1, 134, 139, 1), 1),
        ((1, 1, 1, 75, 1, 1, 0), 0),
    ],
)
def test_single_host_goes_on_where_a_restart_can_help(tmp_path, codes, last):
    environment = stand_in(tmp_path, *codes)
    done = subprocess.run(["bash", str(LAUNCH / "single_host.sh")], env=environment, check=False)
    assert done.returncode == last and starts(tmp_path) == len(codes)


def test_single_host_stops_in_its_own_delay(tmp_path):
    environment = {**stand_in(tmp_path, 75, 0), "RESTART_DELAY": "30"}
    script = subprocess.Popen(["bash", str(LAUNCH / "single_host.sh")], env=environment)
    while not (tmp_path / "count").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 75 and starts(tmp_path) == 1


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [(0, 0, 0), (2, 0, 0), (75, 9, 1), (143, 9, 1), (1, 0, 1), (134, 4, 1), (137, 5, 0)],
)
def test_slurm_requeues_where_a_restart_can_help(tmp_path, code, restarts, requeued):
    for name, text in (("srun", f"exit {code}"), ("scontrol", f"echo $1 >> {tmp_path}/requeued")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == bool(requeued)
