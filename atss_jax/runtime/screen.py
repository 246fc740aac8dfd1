"""Lines for people: wrapped at the width of a terminal, left alone in files and pipes.

They name a field as `config.optim.num_epochs`, as Python and `atss_jax.main` do; the console
command, whose flags are shorter, shows it as `--optim.num_epochs`.
"""

import contextlib
import logging
import os
import re
import sys
import textwrap
from collections.abc import Generator, Sequence
from typing import Any

MIN_WIDTH = 40
"""A narrower terminal is taken to be so wide, characters."""
JOINT = "\N{NO-BREAK SPACE}"
"""Between words that stay on one line, such as a name and its value; shown as a space."""


_is_console = False


@contextlib.contextmanager
def of_console() -> Generator[None, None, None]:
    """Within, fields are named as the flags of `atss`."""
    global _is_console
    before, _is_console = _is_console, True
    try:
        yield
    finally:
        _is_console = before


def as_flags(text: str) -> str:
    """A message with its fields as flags of `atss`.

    >>> as_flags("config.optim.lr: no such field. See docs/config.md and w/config.json.")
    '--optim.lr: no such field. See docs/config.md and w/config.json.'
    """
    return re.sub(r"(?<![\w./-])(?:--)?config\.(?=[a-z]+\.[a-z])", "--", text)


def width_of(stream: Any) -> int | None:
    """Characters per line of the terminal behind a text stream; None for a file or a pipe."""
    try:
        if not stream.isatty():
            return None
        return max(MIN_WIDTH, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):  # a terminal without a size, a stream without a file
        return None


def wrapped(text: str, width: int | None) -> str:
    """`text` with its lines wrapped, continuations indented by two; words are never broken.

    A `JOINT` is shown as a space, but no line breaks there.

    Args:
      text: one line or several.
      width: of a line, characters; None leaves the text as it is.

    >>> print(wrapped("image size 320 px: short side 240", 24))
    image size 320 px: short
      side 240
    """
    if width is None:
        return text.replace(JOINT, " ")
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += [line] if len(line) <= width else _wrapped_line(line, width, indent + "  ")
    return "\n".join(lines).replace(JOINT, " ")


def row(fields: Sequence[str], width: int | None) -> str:
    """As many fields as one line holds, from the first on; none is cut but a first too long.

    >>> row(["step 5/9", "loss 0.5123", "positives 1008"], 30)
    'step 5/9  loss 0.5123'
    """
    line, *more = fields
    for field in more:
        if width is not None and len(line) + 2 + len(field) > width:
            break
        line += f"  {field}"
    return line if width is None else line[:width]


def show(text: str, stream: Any = None) -> None:
    """Prints text, wrapped for the terminal behind the stream.

    Args:
      text: one line or several.
      stream: where to; None is standard output.
    """
    output = stream or sys.stdout
    print(wrapped(_named(text), width_of(output)), file=output, flush=True)


def show_error(problem: Exception | str) -> None:
    """Prints an error on stderr."""
    show(f"error: {problem}", sys.stderr)


def say(text: str, *, end: str = "\n") -> None:
    """Prints on stderr; a terminal or a pipe that was closed must not end a run."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


class LineFormatter(logging.Formatter):
    """Log records as lines that fit the terminal; from warnings on, the level leads."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname}: {text}"
        return wrapped(_named(text), width_of(sys.stderr))


def _named(text: str) -> str:
    return as_flags(text) if _is_console else text


def _wrapped_line(line: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
