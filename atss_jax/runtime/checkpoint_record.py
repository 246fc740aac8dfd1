"""What stands beside a checkpoint: checksums of its files, and the run's facts at its step.

Orbax restores a flipped bit without a word, so every file of `checkpoints/<step>/` is summed when
the save is complete, and summed again before it is read. The record is `checkpoints/<step>.json`,
and holds a checksum of itself, too.
"""

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from atss_jax.errors import UserError
from atss_jax.files import write_whole

T = TypeVar("T")

READ_ATTEMPTS = 3
"""A read that fails (not: that finds damage) is tried so often."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the next."""
OWN_CHECKSUM = "crc32_of_this_record"
"""Entry of a record; records of version 0.1 lack it."""
GLOB_CHARACTERS = "[]*?\\"
"""Orbax finds the parts of a checkpoint by patterns: such a path cannot be read again."""


class DamagedError(ValueError):
    """The files of a checkpoint are not those that were saved."""


def check_folder_name(folder: epath.Path) -> None:
    """Raises UserError for a path that Orbax would take for a pattern."""
    found = sorted(set(GLOB_CHARACTERS) & set(str(folder)))
    if found:
        raise UserError(
            f"--workdir={str(folder)!r} contains {' '.join(found)}: checkpoints in such a folder "
            f"cannot be read again. Use a path without {' '.join(GLOB_CHARACTERS)}"
        )


def with_retries(read: Callable[[], T]) -> T:
    """Result of `read`; a failed read (OSError, time-out) is repeated, and raised at the end.

    A missing file is no failed read: FileNotFoundError is raised at once.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:  # TimeoutError is one
            if attempt == READ_ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def checksum(path: epath.Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def checksums(checkpoint: epath.Path) -> dict[str, list[int]]:
    """[bytes, CRC-32] of every file of a checkpoint, by its path within."""
    found: dict[str, list[int]] = {}
    folders = [checkpoint]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                found[path.relative_to(checkpoint).as_posix()] = checksum(path)
    return found


def record_path(folder: epath.Path, step: int) -> epath.Path:
    """Where the record of a step lies."""
    return folder / f"{step}.json"


def read_record(folder: epath.Path, step: int) -> dict[str, Any] | None:
    """The record of a step; None for a checkpoint of an older version, which has none.

    Raises:
      DamagedError: the record cannot be decoded.
      OSError: it cannot be read.
    """
    path = record_path(folder, step)
    try:
        record = json.loads(with_retries(path.read_bytes))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(f"{path} is no JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("run"), dict):
        raise DamagedError(f"{path} is no record of a checkpoint")
    if OWN_CHECKSUM in record:
        saved = record.pop(OWN_CHECKSUM)
        if saved != _own_checksum(record):
            raise DamagedError(f"{path} is not what was saved: its own checksum differs")
    elif not set(record) <= {"files", "metrics", "run"}:
        raise DamagedError(f"{path} has unknown entries: {sorted(record)}")
    return record


def _own_checksum(record: dict[str, Any]) -> int:
    """CRC-32 of a record's content."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def write_record(folder: epath.Path, step: int, record: dict[str, Any]) -> None:
    """Writes a record so that a reader sees the old or the new one."""
    path = record_path(folder, step)
    whole = {**record, OWN_CHECKSUM: _own_checksum(record)}
    write_whole(path, json.dumps(whole, sort_keys=True) + "\n")


def verify(folder: epath.Path, step: int) -> bool:
    """Compares a checkpoint with its checksums; False when it has none.

    Raises:
      DamagedError: a file is missing, or differs.
      OSError: a file could not be read, after retries.
    """
    record = read_record(folder, step)
    if record is None or not record.get("files"):
        return False
    for name, expected in record["files"].items():
        path = folder / str(step) / name
        try:
            found = with_retries(lambda path=path: checksum(path))
        except FileNotFoundError as error:
            raise DamagedError(f"{name} is missing") from error
        if found != expected:
            raise DamagedError(
                f"{name}: {found[0]} bytes with checksum {found[1]:08x}, saved were "
                f"{expected[0]} with {expected[1]:08x}"
            )
    return True


def best_first(metrics: Mapping[int, Mapping[str, float] | None]) -> list[int]:
    """Steps by their "AP", the best first and of equal ones the earlier.

    Steps that were not evaluated are left out, and those without an object to find (AP -1).

    Args:
      metrics: of each step; None for a step that was not evaluated.

    >>> best_first({10: {"AP": 0.2}, 20: {"AP": 0.4}, 30: {"AP": 0.4}, 40: None, 50: {"AP": -1.0}})
    [20, 30, 10]
    """
    found = {step: (values or {}).get("AP", -1.0) for step, values in metrics.items()}
    known = {step: value for step, value in found.items() if value >= 0}
    return sorted(known, key=lambda step: (-known[step], step))


def chosen_steps(folder: epath.Path, steps: Sequence[int], which: str) -> list[int]:
    """The checkpoints that may be read: all for "last", else one.

    Args:
      folder: of the checkpoints.
      steps: of the complete ones.
      which: "last", "best" (highest AP of those that the training evaluated) or a step.

    Raises:
      UserError: there is no such checkpoint; says which there are.
    """
    there = ", ".join(map(str, sorted(steps))) or "none"
    if which == "last":
        return list(steps)
    if which == "best":
        metrics = {step: (read_record(folder, step) or {}).get("metrics") for step in steps}
        if best := best_first(metrics):
            return best[:1]
        raise UserError(
            f"--checkpoint=best: the training evaluated none of the checkpoints in {folder} "
            f"({there}). Use last, or one of these steps."
        )
    if which.isdigit() and int(which) in steps:
        return [int(which)]
    raise UserError(
        f"--checkpoint={which}: not in {folder}. Use last, best, or one of the steps {there}."
    )
