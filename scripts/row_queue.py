"""A shared folder from which any number of machines pull jobs: nothing runs twice, nothing is lost.

    FOLDER/claims/JOB.N    the Nth claim of a job; its time of change is its owner's heartbeat
    FOLDER/rows/JOB.json   the result of a finished job
    FOLDER/failed/JOB.json why a job failed; `--retry-failed` removes it
    FOLDER/flags/NAME.json what all machines that work on a preset have to agree upon

A claim is a file that only one machine can create. Its owner touches it while it works; one that
was not touched for `expires` seconds, its owner's or the reader's, whichever are more, is dead, and
the job belongs to whoever creates the next number. No claim is ever removed or renamed, so two
machines cannot both replace a dead one. A result is linked into its place, so the first stands even
if a machine that was taken for dead wakes up. Any file system with exclusive creation and hard
links will do (NFS since version 3).
"""

import contextlib
import json
import os
import re
import threading
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

FRESH_PARTS = 6
"""Heartbeats within the time after which a claim is dead, at least."""
BEAT_SECONDS = 10.0
"""Longest time between two."""


class Claim:
    """A job that belongs to this process as long as it touches the file.

    Attributes:
      job: its name.
    """

    def __init__(self, path: Path, job: str, expires: float):
        self.job, self._path, self._expires = job, path, expires

    @contextlib.contextmanager
    def held(self) -> Generator[None, None, None]:
        """Touches the claim from a thread; gives the job back where the work raises."""
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            done.set()
            thread.join()
            with contextlib.suppress(OSError):  # it then expires
                os.utime(self._path, (0, 0))  # dead at once
            raise
        finally:
            done.set()
            thread.join()

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(min(self._expires / FRESH_PARTS, BEAT_SECONDS)):
            with contextlib.suppress(OSError):  # a file server that is away for a moment
                os.utime(self._path)


class RowQueue:
    """The jobs of a folder.

    Args:
      folder: shared by all machines; made where it is missing.
      expires: seconds without a heartbeat after which a claim is dead.

    Raises:
      OSError: the folder cannot be made, or has no hard links.
    """

    def __init__(self, folder: Path, expires: float = 120.0):
        self.folder, self.expires, self._owner = folder, expires, uuid.uuid4().hex
        for name in ("claims", "rows", "failed", "flags"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._store(folder / "flags" / f".{self._owner}", {})  # has hard links
        (folder / "flags" / f".{self._owner}").unlink()

    def claim(self, job: str) -> Claim | None:
        """This process' claim; None where the job is finished, failed or another's.

        Args:
          job: letters, digits and "_.+-".
        """
        if self.is_done(job) or self.has_failed(job):
            return None
        number, newest = self._newest(job)
        if newest is not None and self._is_alive(newest):
            return None
        path = self.folder / "claims" / f"{job}.{number + 1}"
        try:
            with path.open("x") as file:
                file.write(f"{self._owner}\n{self.expires}\n")
        except FileExistsError:
            return None
        if self.is_done(job):  # finished between the two looks
            return None
        return Claim(path, job, self.expires)

    def is_done(self, job: str) -> bool:
        """Whether its result is there."""
        return self._result(job).exists()

    def has_failed(self, job: str) -> bool:
        """Whether it failed and was not released since."""
        return self._failure(job).exists()

    def finish(self, job: str, result: Mapping[str, Any]) -> bool:
        """Stores a result; False where there is one already, which then stands."""
        return self._store(self._result(job), result)

    def fail(self, job: str, reason: str) -> None:
        """Records that a job cannot be done."""
        self._store(self._failure(job), {"job": job, "reason": reason})

    def release_failed(self, job: str) -> None:
        """Lets a failed job be claimed again."""
        _, newest = self._newest(job)
        if newest is not None:
            os.utime(newest, (0, 0))  # nobody claims it before its failure is gone
        self._failure(job).unlink(missing_ok=True)

    def agree(self, name: str, flags: Mapping[str, str]) -> dict[str, str]:
        """What the first machine stored under a name: these flags, or others."""
        path = self.folder / "flags" / f"{name}.json"
        self._store(path, flags)
        return json.loads(path.read_text())

    def _newest(self, job: str) -> tuple[int, Path | None]:
        """Number and file of a job's last claim; (0, None) without one."""
        found = [
            (int(path.name.rpartition(".")[2]), path)
            for path in (self.folder / "claims").iterdir()
            if re.fullmatch(re.escape(job) + r"\.\d+", path.name)
        ]
        return max(found, default=(0, None))

    def _is_alive(self, claim: Path) -> bool:
        """By the clock of the folder's file system, which all machines share."""
        probe = self.folder / f"clock-{self._owner}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        _, _, own = claim.read_text().partition("\n")  # may be empty while it is written
        expires = max(self.expires, float(own.strip() or 0))
        return now - claim.stat().st_mtime < expires

    def _store(self, path: Path, content: Mapping[str, Any]) -> bool:
        part = path.with_name(f".{path.name}-{self._owner}")
        try:
            with part.open("w") as file:
                file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())  # no empty result after a power failure
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def _result(self, job: str) -> Path:
        return self.folder / "rows" / f"{job}.json"

    def _failure(self, job: str) -> Path:
        return self.folder / "failed" / f"{job}.json"
