"""What the experiments with real processes stand on: data, an undisturbed run, copies of it."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fault_damage import HangError, SilentlyWrongError, WrongCodeError
from tiny_run import Run, differences, make_data

STEPS, EVERY = 60, 5
FLAGS = [
    f"--config.optim.num_steps={STEPS}",
    f"--config.run.checkpoint_every={EVERY}",
    "--config.run.keep_last=20",
]


class Ground:
    """Data, recipe and an undisturbed run, made at the first use."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.data, self.log = self.folder / "data", self.folder / "log.txt"
        self.flags = [*make_data(self.data), *FLAGS]
        self.reference = self.folder / "reference"
        expect(self.start(self.reference), 0)
        self._number = 0

    def start(self, workdir: Path, *extra: str, **keywords: Any) -> Run:
        """A training run, or another mode."""
        return Run(workdir, [*self.flags, *extra], self.log, **{"mode": "train", **keywords})

    def new(self) -> Path:
        """A name of a workdir."""
        self._number += 1
        return self.folder / f"run{self._number}"

    def stopped_at(self, step: int) -> Path:
        """A copy of the reference as if it had been killed after this step's checkpoint."""
        workdir = self.new()
        shutil.copytree(self.reference, workdir)
        for path in (workdir / "checkpoints").iterdir():
            if path.stem.isdigit() and int(path.stem) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (workdir / "result.json").unlink()
        return workdir

    def check_end(self, workdir: Path, *extra: str) -> None:
        """Goes on until the end, which must be the reference's."""
        expect(self.start(workdir, *extra), 0)
        found = differences(self.reference, workdir, STEPS)
        if found:
            raise SilentlyWrongError(f"the end is another: {found}")


_GROUNDS: list[Ground] = []


def ground() -> Ground:
    """The ground of all experiments."""
    if not _GROUNDS:
        _GROUNDS.append(Ground())
    return _GROUNDS[0]


def expect(run: Run, *codes: int, seconds: float = 300.0, says: str = "") -> None:
    """Waits for the end; each process must have one of the codes, process 0 must say something."""
    try:
        found = run.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise HangError(f"no end after {seconds:.0f} s: {run.text()[-2000:]}") from error
    if not set(found) <= set(codes):
        raise WrongCodeError(f"{found} instead of {codes}: {run.text()[-2000:]}")
    assert re.search(says, run.text()), f"{says!r} was not said: {run.text()[-2000:]}"


def in_loop(run: Run, step: int = 10) -> None:
    """Waits until some steps are done."""
    pattern = rf"^step ({'|'.join(str(n) for n in range(step, STEPS, 2))})/"
    assert run.wait_for(pattern), run.text()[-2000:]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
