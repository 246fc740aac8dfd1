"""One training run per workdir: a lock file that says who holds it.

The holder is known by host, process id and the start of that process, so a number that the system
gave to another process is no holder. On another host nobody can look: there a holder is alive if it
goes on touching the file, which needs no clocks that agree.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Generator

import jax
from etils import epath

from atss_jax.errors import UserError

HEARTBEAT_SECONDS = 5.0
"""The holder touches its lock so often."""
PATIENCE_SECONDS = 20.0
"""A lock of another host that is not touched for so long is one that a kill left behind."""


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Generator[None, None, None]:
    """Holds `workdir/run.lock`; process 0 of a job does so for all, and a bucket has none.

    A lock whose process is dead is replaced (a kill leaves it behind).

    Raises:
      UserError: another run holds it.
      OSError: the folder cannot be written to.
    """
    if jax.process_index() != 0 or "://" in os.fspath(workdir):
        yield
        return
    path = os.path.join(os.fspath(workdir), "run.lock")
    mine = json.dumps(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "time": time.time(),
        }
    )
    _take(path, mine)
    over = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, mine, over), daemon=True)
    thread.start()
    _HELD.add(path)
    try:
        yield
    finally:
        over.set()
        _HELD.discard(path)
        if _read(path) == mine:  # never that of a run that took over
            with contextlib.suppress(OSError):
                os.unlink(path)


_HELD: set[str] = set()
"""Locks that this process holds now."""


def refuse_if_held(workdir: epath.Path) -> None:
    """Raises UserError if another run is known to hold the workdir: before anything slow."""
    path = os.path.join(os.fspath(workdir), "run.lock")
    if "://" not in path and jax.process_index() == 0:
        text = _read(path)
        if text is not None and _is_alive(path, text) is True:
            raise _refusal(path, text)


def _take(path: str, mine: str) -> None:
    """Creates the lock file, replacing one that was left behind."""
    while not _create(path, mine):
        text = _read(path)
        if text is None:
            continue  # given back this moment
        alive = _is_alive(path, text)
        if alive is None:
            logging.warning(
                "%s is of %s: waiting %.0f s to see whether that run lives",
                path, _holder(text).get("host", "an unknown host"), PATIENCE_SECONDS,
            )  # fmt: skip
            alive = _is_touched(path)
        if alive:
            raise _refusal(path, text)
        _set_aside(path, text)


def _create(path: str, text: str) -> bool:
    """Creates a file with its content in one step; False when there is one."""
    temporary = f"{path}.{socket.gethostname()}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with open(path, "x") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        os.unlink(temporary)
    return True


def _set_aside(path: str, text: str) -> None:
    """Removes a lock that was left behind, unless another start was faster."""
    moved = f"{path}.{socket.gethostname()}.{os.getpid()}.left"
    try:
        os.rename(path, moved)
    except FileNotFoundError:
        return
    if _read(moved) != text:  # a lock taken since we looked: put it back
        with contextlib.suppress(OSError):
            os.link(moved, path)
    os.unlink(moved)


def _read(path: str) -> str | None:
    """Content of a lock; None without one."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _holder(text: str) -> dict[str, object]:
    """What a lock says; {} when it cannot be decoded."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(path: str, text: str) -> bool | None:
    """Whether a holder lives; None when only its touches can tell."""
    holder = _holder(text)
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if pid == os.getpid():  # a container gives the same number at every start
        return path in _HELD
    started = _started(pid)
    if "started" in holder and started is not None:
        return holder["started"] == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process of this host began (boot and clock ticks); None where unknown or dead."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return "ended"  # killed, and its parent has not looked yet
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}:{fields[19]}"
    except (OSError, IndexError):
        return None


def _is_touched(path: str) -> bool:
    """Waits whether a lock changes."""
    before, end = _touched_at(path), time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(0.5, PATIENCE_SECONDS))
        now = _touched_at(path)
        if now != before:
            return now is not None  # else it was given back
    return False


def _touched_at(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _touch(path: str, mine: str, over: threading.Event) -> None:
    """Shows other hosts that the holder lives, until `over`."""
    while not over.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            if _read(path) == mine:
                os.utime(path)


def _refusal(path: str, text: str) -> UserError:
    holder = _holder(text)
    return UserError(
        f"{path}: another run trains in this workdir (process {holder.get('pid')} on "
        f"{holder.get('host')}). Wait for it, or use another --workdir."
    )


def check_still_held(workdir: epath.Path) -> None:
    """Raises unless this process still holds the workdir that it has claimed.

    Raises:
      RuntimeError: the folder vanished, or another run has taken it over.
    """
    path = os.path.join(os.fspath(workdir), "run.lock")
    if path not in _HELD:
        return
    holder = _holder(_read(path) or "")
    if holder.get("pid") != os.getpid() or holder.get("host") != socket.gethostname():
        raise RuntimeError(
            f"{path} is gone or of another run: the workdir was moved, deleted or taken over while "
            "this run trained. Nothing more is written to it."
        )
