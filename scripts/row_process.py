"""Commands of `scripts/paper_rows.py`: none outlives its worker, and their time is added up.

A signal to stop (SIGTERM, Ctrl-C) is handed on to the running command, which saves and ends. If the
worker is killed, the system sends the command SIGTERM (on Linux): so a command is started through
this file, `python scripts/row_process.py WORKER COMMAND...`, which asks for that and becomes it.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PREEMPTED = 75
"""Exit code of a run that was told to stop and goes on later."""
REFUSED = 2
"""Exit code of a command that was given something wrong."""
LAST_LINES = 40
"""Of what a failed command wrote, kept in its record."""
STOPS = (signal.SIGTERM, signal.SIGINT)
HELD = "another run trains in this workdir"
"""Of the line with which a start is refused, see `atss_jax.run.workdir_lock`."""
BEAT_SECONDS = 30.0
"""A running command's time is saved so often."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl.h: the signal that a process gets when its parent ends."""


class RowFailedError(RuntimeError):
    """A command of a job ended with an error.

    Attributes:
      is_refused: it refused what it was given.
    """

    def __init__(self, message: str, *, is_refused: bool = False):
        super().__init__(message)
        self.is_refused = is_refused


class StoppedError(RuntimeError):
    """The worker, or a command of a job, was told to stop."""


class WorkdirHeldError(RuntimeError):
    """A command found that another run trains in its workdir."""


class Stopwatch:
    """Seconds of a job over all its starts.

    Args:
      workdir: holds their sum in a file, as soon as it is there.
    """

    def __init__(self, workdir: Path):
        self._path, self._start = workdir / "row_seconds", time.monotonic()
        self._before = 0.0
        with contextlib.suppress(OSError, ValueError):  # none yet, or half written
            self._before = float(self._path.read_text())

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.monotonic() - self._start

    def save(self) -> None:
        """Writes the seconds; a start that is killed loses those since then."""
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            if self._path.parent.is_dir():
                part = self._path.with_suffix(".part")
                part.write_text(f"{self.seconds:.1f}\n")
                part.replace(self._path)


class _HandingOn:
    """Signals to stop go to a process."""

    def __init__(self):
        self.number: int | None = None
        self.process: subprocess.Popen[str] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        del frame
        self.number = number
        if self.process is not None:
            self.process.send_signal(number)

    def give(self, process: subprocess.Popen[str]) -> None:
        """From now on to this process, and what came before it, too."""
        self.process = process
        if self.number is not None:
            process.send_signal(self.number)


@contextlib.contextmanager
def _handled(handle: Callable[[int, FrameType | None], None]) -> Generator[None, None, None]:
    before = {number: signal.signal(number, handle) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Generator[None, None, None]:
    """Signals to stop raise StoppedError, but while a command runs, which gets them."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise StoppedError(signal.Signals(number).name)

    with _handled(stop):
        yield


def call(command: list[str], beat: Callable[[], None] = lambda: None) -> None:
    """Runs a command of Python to its end.

    Args:
      command: begins with "python".
      beat: called now and then, and at the end.

    Raises:
      RowFailedError: it failed; says its last lines.
      StoppedError: it, or this process, was told to stop.
      WorkdirHeldError: another run trains in its workdir.
    """
    python, signals = sys.executable, _HandingOn()
    starter = [python, str(ROOT / "scripts/row_process.py"), str(os.getpid())]
    with (
        _handled(signals.handle),
        subprocess.Popen(
            [*starter, python, *command[1:]], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace",
        ) as process,
    ):  # fmt: skip
        signals.give(process)
        error = _wait(process, beat)
    if process.returncode == REFUSED and HELD in error:
        raise WorkdirHeldError(error.strip().splitlines()[-1])
    beat()
    if signals.number is not None or process.returncode == PREEMPTED:
        raise StoppedError(shlex.join(command))
    if process.returncode:
        last = "\n".join(error.strip().splitlines()[-LAST_LINES:])
        text = f"exit code {process.returncode} of {shlex.join(command)}\n{last}"
        raise RowFailedError(text, is_refused=process.returncode == REFUSED)


def _wait(process: subprocess.Popen[str], beat: Callable[[], None]) -> str:
    """What it writes to stderr until its end."""
    while True:
        try:
            return process.communicate(timeout=BEAT_SECONDS)[1]
        except subprocess.TimeoutExpired:
            beat()


def _become(worker: int, command: list[str]) -> None:
    """Turns this process into a command that is told to stop when its worker ends."""
    with contextlib.suppress(AttributeError):  # a system without prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != worker:  # it ended before
        sys.exit(PREEMPTED)
    os.execv(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
