"""The launch scripts, with stand-ins: which exit codes go on, signals, what is installed when."""

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


GCLOUD = """#!/bin/bash
cd {folder}
step() {{ echo "$1" >> calls; grep -cx "$1" calls; }}
case "$*" in
*describe*) cat state 2>/dev/null; exit 0 ;;
*"resources create"*) step create > /dev/null; echo ACTIVE > state ;;
*"resources delete"*) step delete > /dev/null; rm state ;;
*scp*) [ "$(step copy)" -gt {failures} ] ;;
*atss_jax.main*) n=$(step run)
  case $n in {codes} esac ;;
esac
"""


def tpu_pod(folder, *codes, failures=0, preempted=(), kept=False):
    """Runs tpu_pod.sh with a stand-in for gcloud; its exit code and what it asked for, in order.

    Args:
      folder: of the stand-in.
      codes: exit codes of the training, one a start.
      failures: copies to the slice that fail at first.
      preempted: starts (from 1) after which the slice is gone.
      kept: whether a slice is there at first.
    """
    cases = [
        f"{n}) {'rm state;' if n in preempted else ''} exit {code};;"
        for n, code in enumerate(codes, 1)
    ]
    for name, text in (
        ("gcloud", GCLOUD.format(folder=folder, failures=failures, codes=" ".join(cases))),
        ("sleep", "#!/bin/bash\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "tmp").mkdir()
    if kept:
        (folder / "state").write_text("ACTIVE\n")
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        **{"PROJECT": "p", "ZONE": "z", "TMPDIR": str(folder / "tmp")},
    }
    done = subprocess.run(
        ["bash", str(LAUNCH / "tpu_pod.sh"), "--config=x"],
        env=environment, check=False, timeout=60,
    )  # fmt: skip
    assert not list((folder / "tmp").iterdir())  # no archive is left
    return done.returncode, (folder / "calls").read_text().split()


def test_tpu_pod_installs_once_a_slice(tmp_path):
    code, calls = tpu_pod(tmp_path, 75, 1, 0, preempted=(2,))
    assert code == 0
    assert calls == ["create", "copy", "run", "run", "create", "copy", "run", "delete"]


def test_tpu_pod_repeats_a_failed_install_before_it_runs(tmp_path):
    assert tpu_pod(tmp_path, 0, failures=2) == (
        0,
        ["create", "copy", "copy", "copy", "run", "delete"],
    )


def test_tpu_pod_gives_up_on_a_slice_that_takes_no_install(tmp_path):
    code, calls = tpu_pod(tmp_path, 0, failures=99)
    assert code == 1 and calls == ["create", *["copy"] * 5]


def test_tpu_pod_installs_the_checkout_on_a_slice_that_was_kept(tmp_path):
    assert tpu_pod(tmp_path, 2, kept=True) == (2, ["copy", "run"])
