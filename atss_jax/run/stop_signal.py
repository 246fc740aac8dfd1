"""The wish to stop: signals that are remembered until the run has saved."""

import signal
import threading
import time
from typing import Any

BURST_SECONDS = 5.0
"""Signals so close together are one wish to stop."""


class Preempted(Exception):
    """The run was told to stop, and its state is saved."""


class StopSignal:
    """Remembers SIGTERM and SIGINT (single process).

    Signals within `BURST_SECONDS` are one: a launcher and its process group both deliver theirs.
    Only a SIGINT after that acts at once.

    With several processes the notice reaches all of them through `Checkpointer.preempted`.

    Args:
      is_single: False installs nothing. Given, not asked of JAX: processes may not have joined yet.
    """

    def __init__(self, *, is_single: bool = True):
        self.received = False
        self._first = 0.0
        if threading.current_thread() is not threading.main_thread():
            self._old = {}  # Python delivers signals to the main thread only
        elif is_single:
            self._old = {
                s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)
            }
        else:
            self._old = {}

    def _receive(self, number: int, _frame: Any) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first = True, now
        elif number == signal.SIGINT and now - self._first > BURST_SECONDS:
            self.restore()
            signal.raise_signal(number)

    def check(self) -> None:
        """Raises Preempted after a signal: before the first step there is nothing to save."""
        if self.received:
            raise Preempted("stopped before the first step; run the same command again to go on.")

    def restore(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
