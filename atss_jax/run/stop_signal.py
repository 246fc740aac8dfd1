"""The wish to stop: signals that are remembered until the run has saved.

Without JAX, so that the handlers stand before it is imported. Python runs a handler only between
two steps of the interpreter, and a compilation or a blocked read may last for minutes; so a thread
that the system wakes up at once says what happens, and ends the process where nothing can be lost.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: saved and stopped on a signal; the same command goes on."""
BURST_SECONDS = 5.0
"""Signals so close together are one wish to stop."""
STEP_SECONDS = 20.0
"""A step, or a wait for its batch, that lasts longer after a signal is given up."""
EVALUATION_SECONDS = 10.0
"""An evaluation (its state is saved) that does not stop by itself is given up after so long."""
COMPLETE_SECONDS = 20.0
"""So long a complete run may go on drawing its report and closing its files."""
LEAVING_SECONDS = 4.0
"""What is done when the process is ended may take so long: it may be a dead mount that blocks."""
HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""A terminal that was closed; under `nohup` it stays ignored. Windows has none."""
BEFORE = "before the first step: there is nothing to save"
"""What a signal means until the loop runs."""


class Preempted(Exception):
    """The run was told to stop, and its state is saved."""


class StopSignal:
    """Remembers SIGTERM, SIGINT and, on the command line, SIGHUP.

    Signals within `BURST_SECONDS` are one: a launcher and its process group both deliver theirs.
    Only a SIGINT after that acts at once.

    With several processes the notice reaches all of them through `Checkpointer.preempted`.

    Args:
      is_single: False installs nothing, unless `owns_process`. Given, not asked of JAX: processes
        may not have joined yet.
      owns_process: may end the process, with code 75, where nothing can be lost: True in the
        command line only.
    """

    def __init__(self, *, is_single: bool = True, owns_process: bool = False):
        self.received = False
        self._first = 0.0
        self._owns_process = owns_process
        self._phase: tuple[str, float | None, int] = (BEFORE, 0.0, PREEMPTED_EXIT_CODE)
        self._joined: Callable[[int], Any] | None = None
        self._at_leaving: list[Callable[[], Any]] = []
        self._old: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        read: int | None = None
        if owns_process:
            read, write = os.pipe()
            os.set_blocking(write, False)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # before the first handler
        if is_single or owns_process:
            numbers: list[int] = [signal.SIGTERM, signal.SIGINT]
            if owns_process and HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
                numbers.append(HANGUP)
            self._old = {number: signal.signal(number, self._receive) for number in numbers}
        if read is not None:
            threading.Thread(target=self._watch, args=(read,), daemon=True).start()
            atexit.register(self.ignore)  # the first one registered is the last one called

    def enter(self, phase: str, limit: float | None, code: int = PREEMPTED_EXIT_CODE) -> None:
        """Says what a signal means from here on.

        Args:
          phase: what happens then, for the message.
          limit: seconds after the signal when the process is ended, because nothing is lost or
            nothing can be saved; None never.
          code: of the process then.
        """
        self._phase = (phase, limit, code)

    def at_leaving(self, action: Callable[[], Any]) -> None:
        """Adds something short to do when the process is ended by `leave`."""
        self._at_leaving.append(action)

    def follow_job(self) -> None:
        """Takes SIGTERM back from JAX after the processes have joined, and passes it on to it.

        JAX's handler makes all processes stop at one step, but tells nobody else.
        """
        if not self._owns_process or sys.platform != "linux":
            return
        action = (ctypes.c_void_p * 32)()  # struct sigaction: the handler comes first
        ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, ctypes.byref(action))
        if action[0]:
            self._joined = ctypes.CFUNCTYPE(None, ctypes.c_int)(action[0])
        signal.signal(signal.SIGTERM, self._receive)
        if self.received and self._joined is not None:
            self._joined(int(signal.SIGTERM))

    def check(self) -> None:
        """Raises Preempted after a signal: before the first step there is nothing to save."""
        if self.received:
            raise Preempted("stopped before the first step; run the same command again to go on.")

    def restore(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def leave(self, code: int) -> NoReturn:
        """Ends the process now, whatever its threads are doing."""
        last = threading.Thread(target=self._do_last, daemon=True)
        last.start()
        last.join(LEAVING_SECONDS)
        os._exit(code)

    def _do_last(self) -> None:
        for action in [*self._at_leaving, sys.stdout.flush, sys.stderr.flush]:
            with contextlib.suppress(Exception):  # such as a terminal that was closed
                action()

    def ignore(self) -> None:
        """While Python ends it takes handlers back: a signal must not change the exit code then."""
        signal.set_wakeup_fd(-1)
        for number in self._old:
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first = True, now
        elif number == signal.SIGINT and now - self._first > BURST_SECONDS:
            self.restore()
            raise KeyboardInterrupt  # also where SIGINT was ignored, as in a shell's background

    def _watch(self, descriptor: int) -> None:
        """Waits for the first signal, says what happens, and ends the process when due."""
        while (number := os.read(descriptor, 1)[0]) not in self._old:
            pass
        first = time.monotonic()
        self.received, self._first = True, self._first or first
        if self._joined is not None:
            self._joined(int(signal.SIGTERM))
        self._say(f"{signal.Signals(number).name}: stopping; {self._phase[0]}")
        os.set_blocking(descriptor, False)
        while True:
            waited = time.monotonic() - first
            _, limit, code = self._phase
            if limit is not None and waited >= limit:
                goes_on = "; the same command goes on" if code == PREEMPTED_EXIT_CODE else ""
                self._say(f"stopped, exit code {code}{goes_on}")
                self.leave(code)
            time.sleep(0.05)
            try:
                numbers = os.read(descriptor, 64)
            except BlockingIOError:
                continue
            if signal.SIGINT in numbers and waited > BURST_SECONDS:
                os._exit(128 + signal.SIGINT)

    def _say(self, text: str) -> None:
        """Prints past Python's buffers, whose locks the main thread may hold."""
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(2, f"\n{text}\n".encode())


_of_process: StopSignal | None = None


def install() -> StopSignal:
    """Handlers for the whole process, from the first moment of the command line on."""
    global _of_process
    if _of_process is None:
        _of_process = StopSignal(owns_process=True)
    return _of_process


def uninstall() -> None:
    """The former handlers again: a mode that has nothing to save simply ends."""
    global _of_process
    if _of_process is not None:
        signal.set_wakeup_fd(-1)
        atexit.unregister(_of_process.ignore)
        _of_process.restore()
        _of_process = None


def of_process() -> StopSignal | None:
    """The handlers of the command line; None in a notebook or a test."""
    return _of_process
