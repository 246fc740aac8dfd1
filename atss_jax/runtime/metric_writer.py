"""Where numbers go: JSON lines always, TensorBoard when installed, Weights & Biases when asked.

`metrics.jsonl` holds what the run computes: one line a step and one an evaluation, in order, equal
for an interrupted and an uninterrupted run. What depends on the machine (times, rates) goes to
`timing.jsonl`.
"""

import importlib.util
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from atss_jax.files import write_whole
from atss_jax.runtime import screen


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a torn last line (a kill while writing) is left out."""
    path = epath.Path(path)
    if not path.exists():
        return []
    return _parse(path.read_bytes())[0]


def _parse(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of a file, and the numbers of damaged lines (a torn last line is none)."""
    text = content.decode(errors="replace")
    lines = text.split("\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif line and number < len(lines):  # what follows the last newline is torn
            damaged.append(number)
    return rows, damaged


class JsonLines:
    """Appends rows with a "step" to a file, and forgets those that a restored run repeats.

    A bucket (gs://...) cannot append: there, `flush` writes the whole file.
    """

    def __init__(self, path: str | os.PathLike, *, keep_until: int, is_evaluated: bool = True):
        """Opens `path`, dropping rows of steps after `keep_until`.

        A file with damaged lines is kept as `<name>.bad-N` and reported; its good rows go on.

        Args:
          path: the file.
          keep_until: step of the restored checkpoint.
          is_evaluated: False drops the evaluation at `keep_until` too: it is done again.
        """
        self._path = epath.Path(path)
        rows, damaged = _parse(self._path.read_bytes()) if self._path.exists() else ([], [])
        if damaged:
            number = 1
            while (kept := self._path.with_name(f"{self._path.name}.bad-{number}")).exists():
                number += 1
            kept.write_bytes(self._path.read_bytes())
            logging.warning(
                "%s: damaged lines %s; the whole file is kept as %s, its good rows are used",
                self._path, damaged[:10], kept,
            )  # fmt: skip
        rows = [
            row
            for row in rows
            if row["step"] < keep_until
            or (row["step"] == keep_until and (is_evaluated or "eval/AP" not in row))
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._file: Any = None
        if "://" in os.fspath(self._path):
            self._text, self._is_flushed = [text], False
            return
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(self._path)
        self._file = open(os.fspath(self._path), "a")  # noqa: SIM115 - closed by close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row; a non-finite number becomes null (JSON has none)."""
        row = {k: v if np.isfinite(v) else None for k, v in row.items()}
        line = json.dumps(row) + "\n"
        if self._file is not None:
            self._file.write(line)
        else:
            self._text.append(line)
            self._is_flushed = False

    def flush(self) -> None:
        """Puts all rows on disk: before a checkpoint that counts on them."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        elif not self._is_flushed:
            self._text = ["".join(self._text)]
            self._path.write_text(self._text[0])
            self._is_flushed = True

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._file is not None:
            self._file.close()


class MetricWriter:
    """All sinks of one process; the processes other than the first write nothing.

    Args:
      workdir: folder of the run.
      keep_until: step of the restored checkpoint; later rows are dropped and written again.
      is_evaluated: False drops the evaluation at `keep_until`, which is done again.
      is_active: False on processes other than the first.
      wandb_project: Weights & Biases project, "" for none.
      config: the recipe as a dict, for Weights & Biases.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep_until: int,
        is_evaluated: bool = True,
        is_active: bool = True,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        workdir = epath.Path(workdir)
        self._active = is_active
        self._metrics = self._timing = self._tensorboard = self._wandb = None
        if not is_active:
            return
        self._metrics = JsonLines(
            workdir / "metrics.jsonl", keep_until=keep_until, is_evaluated=is_evaluated
        )
        self._timing = JsonLines(workdir / "timing.jsonl", keep_until=keep_until)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(
                os.fspath(workdir / "tensorboard"), purge_step=keep_until + 1
            )
        if wandb_project:
            import wandb  # pyright: ignore[reportMissingImports] - an extra

            known = workdir / "wandb_id.txt"
            self._wandb = wandb.init(
                project=wandb_project,
                dir=os.fspath(workdir),
                config=dict(config or {}),
                id=known.read_text().strip() if known.exists() else None,
                resume="allow",  # a run that goes on stays one run
            )
            write_whole(known, self._wandb.id + "\n")

    def write(self, step: int, values: Mapping[str, float], *, prefix: str = "") -> None:
        """Writes computed scalars of a step; names are prefixed in every sink."""
        self._write(self._metrics, step, {prefix + k: v for k, v in values.items()})

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars that depend on the machine."""
        self._write(self._timing, step, dict(values))

    def write_image(self, step: int, name: str, rgb: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3], to TensorBoard and W&B."""
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, rgb, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb  # pyright: ignore[reportMissingImports] - an extra

            self._wandb.log({name: wandb.Image(rgb)}, step=step)

    def flush(self) -> None:
        """Puts everything written so far on disk."""
        for sink in (self._metrics, self._timing, self._tensorboard):
            if sink is not None:
                sink.flush()

    def close(self) -> None:
        """Flushes and closes all sinks."""
        for sink in (self._metrics, self._timing, self._tensorboard):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, sink: JsonLines | None, step: int, values: dict[str, float]) -> None:
        if sink is None:
            return
        sink.write({"step": step, **values})
        if self._tensorboard is not None:
            for name, value in values.items():
                if np.isfinite(value):
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)


class Progress:
    """One line that tells how the run goes: rewritten on a terminal, a new one elsewhere.

    Args:
      start_step: step of the restored checkpoint.
      num_steps: last step of the run.
      is_active: False prints nothing.
    """

    def __init__(self, start_step: int, num_steps: int, *, is_active: bool = True):
        self._start, self._num_steps = start_step, num_steps
        self._active = is_active
        self._terminal = sys.stderr.isatty()
        self._is_open = False
        """Whether the last line has no end yet."""
        self._seconds = 0.0
        self._steps = 0
        self._last: tuple[int, float] = (start_step, time.monotonic())

    def pause(self) -> None:
        """Starts the clock anew, after something that is no training (evaluation, saving)."""
        self._last = (self._last[0], time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds

    def report(self, step: int, batch_size: int, values: Mapping[str, str]) -> float:
        """Prints a line; returns images per second since the last one.

        Args:
          step: steps done.
          batch_size: images per step.
          values: further texts to show.
        """
        now = time.monotonic()
        steps, seconds = step - self._last[0], max(now - self._last[1], 1e-9)
        self._last = (step, now)
        self._seconds += seconds
        self._steps += steps
        rate = steps * batch_size / seconds
        left = (self._num_steps - step) * self._seconds / max(self._steps, 1)
        texts = [f"step {step}/{self._num_steps}", f"{rate:.1f} img/s", f"{_clock(left)} left"]
        texts += [f"{name} {text}" for name, text in values.items()]
        self._print(texts)
        return rate

    def note(self, text: str, *, is_wrapped: bool = True) -> None:
        """Prints a line that stays.

        Args:
          text: one line or several.
          is_wrapped: False for commands, which people copy: a terminal's own wrapping is no break.
        """
        if self._active:
            if is_wrapped:
                text = screen.wrapped(text, screen.width_of(sys.stderr))
            screen.say(("\r\033[K" if self._terminal else "") + text)
            self._is_open = False

    def close(self) -> None:
        """Ends a line that would be rewritten: what others print begins on one of its own."""
        if self._is_open:
            screen.say("")
            self._is_open = False

    def _print(self, fields: Sequence[str]) -> None:
        if not self._active:
            return
        if not self._terminal:
            screen.say(screen.row(fields, None))
            return
        width = screen.width_of(sys.stderr)  # of one row: a second one would stay on the screen
        screen.say("\r\033[K" + screen.row(fields, width and width - 1), end="")
        self._is_open = True


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def configure_logging() -> None:
    """Warnings and errors of this package on stderr, one line each."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:  # absl's, where its flags were read
        handler.setFormatter(screen.LineFormatter())
        handler.addFilter(_is_for_people)
    quiet_dependencies()


def _is_for_people(record: logging.LogRecord) -> bool:
    """Whether a message is ours, or more than a note of another package."""
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in ("root", "atss_jax")


def quiet_dependencies() -> None:
    """Leaves out what other packages say at every save and restore."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # it tells each missing backend
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax: every save, every restore
    for package in ("orbax", "flax", "grain", "jax", "etils"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
