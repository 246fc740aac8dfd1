"""One training run per workdir: a lock file that says who holds it."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

import jax
from etils import epath

from atss_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
    """Holds `workdir/run.lock`; process 0 of a job does so for all, and a bucket has none.

    A lock whose process is dead on this host is replaced (a kill leaves it behind).

    Raises:
      UserError: another run holds it, or may hold it on another host.
    """
    if jax.process_index() != 0 or "://" in os.fspath(workdir):
        yield
        return
    path = os.path.join(os.fspath(workdir), "run.lock")
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    _take(path, json.dumps(mine))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _take(path: str, text: str) -> None:
    """Creates the lock file, removing a stale one once."""
    for attempt in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder = _holder(path)
            if attempt == 0 and _is_dead(holder):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                continue
            raise UserError(
                f"{path}: another run trains in this workdir (process {holder.get('pid')} on "
                f"{holder.get('host')}). Wait for it, or use another --workdir; if that process "
                "is gone, delete the file."
            ) from None
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        return


def _holder(path: str) -> dict[str, object]:
    """What the lock says; {} when it cannot be read."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(holder: dict[str, object]) -> bool:
    """Whether the holder ran on this host and does not any more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
