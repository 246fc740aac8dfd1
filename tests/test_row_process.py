"""Commands of scripts/paper_rows.py: stopped with their worker, timed over all starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

import paper_rows
import row_jobs
import row_process
import table_rows
from atss_jax.errors import UserError
from atss_jax.run import workdir_lock
from row_queue import RowQueue

ROOT = Path(__file__).resolve().parents[1]

COMMAND = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])

def stop(number, frame):
    (folder / "told").write_text(signal.Signals(number).name)
    raise SystemExit(75)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""

WORKER = """
import sys
sys.path.insert(0, "scripts")
import row_process

try:
    with row_process.stoppable():
        row_process.call(["python", "-c", sys.argv[1], sys.argv[2]])
except row_process.StoppedError:
    sys.exit(75)
"""


def wait_for(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's end is signalled on Linux only")
@pytest.mark.parametrize(
    ("number", "told", "code"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        (signal.SIGINT, "SIGINT", 75),
        (signal.SIGKILL, "SIGTERM", -signal.SIGKILL),
    ],
)
def test_a_command_is_told_to_stop_with_its_worker(tmp_path, number, told, code):
    worker = subprocess.Popen([sys.executable, "-c", WORKER, COMMAND, str(tmp_path)], cwd=ROOT)
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker.send_signal(number)
        assert worker.wait(30) == code
    finally:
        worker.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_there(pid))
    assert (tmp_path / "told").read_text() == told


def test_a_signal_without_a_command_raises():
    with pytest.raises(row_process.StoppedError, match="SIGTERM"), row_process.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def exits(code: int, text: str = "") -> list[str]:
    return ["python", "-c", f"import sys; print({text!r}, file=sys.stderr); sys.exit({code})"]


def test_how_a_command_ended():
    beats = []
    row_process.call(exits(0), lambda: beats.append(1))
    with pytest.raises(row_process.RowFailedError, match=r"exit code 3 of python -c .*\n.*broken"):
        row_process.call(exits(3, "broken"), lambda: beats.append(1))
    with pytest.raises(row_process.StoppedError, match="python -c"):
        row_process.call(exits(75), lambda: beats.append(1))
    assert len(beats) == 3


def test_a_workdir_in_which_another_run_trains_is_no_failure(tmp_path):
    with (
        workdir_lock.hold(epath.Path(tmp_path)),
        pytest.raises(UserError) as refusal,
    ):
        workdir_lock.refuse_if_held(epath.Path(tmp_path))
    with pytest.raises(row_process.WorkdirHeldError, match=f"process {os.getpid()} on"):
        row_process.call(exits(2, f"error: {refusal.value}"), lambda: pytest.fail("its own time"))


def test_a_job_whose_workdir_is_held_is_tried_again(tmp_path, capsys):
    jobs = row_jobs.make_jobs(table_rows.selected(["2"]), "mini", 1)
    tried: list[str] = []

    def do(job):
        tried.append(job.name)
        if tried.count(jobs[0].name) < 3 and job == jobs[0]:
            raise row_process.WorkdirHeldError("run.lock: another run trains in this workdir")
        return {"job": job.name}

    queue = RowQueue(tmp_path, expires=0.4)
    assert paper_rows.work(queue, jobs, do) == []
    assert [tried.count(job.name) for job in jobs] == [3, 1, 1, 1]
    assert len(list(tmp_path.glob("rows/*.json"))) == 4 and not list(
        (tmp_path / "failed").iterdir()
    )
    assert "tried again later: run.lock" in capsys.readouterr().err


def test_minutes_are_those_of_all_starts(tmp_path, monkeypatch):
    (job,) = row_jobs.make_jobs(table_rows.selected(["4"], ["k=15"]), "mini", 1)
    workdir = tmp_path / job.name
    now, ends = [0.0], [row_process.StoppedError("preempted"), None]
    monkeypatch.setattr(row_process.time, "monotonic", lambda: now[0])

    def call(command, beat):
        workdir.mkdir(exist_ok=True)
        now[0] += 100
        beat()
        now[0] += 20
        beat()
        end = ends.pop(0)
        if end:
            raise end
        about = {"steps": 5, "wall_seconds": 9.0, "num_devices": 1, "device_kind": "cpu"}
        metrics = dict.fromkeys(row_jobs.KEPT, 0.1)
        text = json.dumps({**about, "versions": {}, "metrics": metrics})
        (workdir / "result.json").write_text(text)

    monkeypatch.setattr(row_process, "call", call)
    with pytest.raises(row_process.StoppedError):
        row_jobs.run_job(job, tmp_path, ())
    now[0] += 5000  # until somebody starts it again
    assert row_jobs.run_job(job, tmp_path, ())["all_seconds"] == 240
    assert {path.name for path in workdir.iterdir()} == {"result.json", "row_seconds"}
