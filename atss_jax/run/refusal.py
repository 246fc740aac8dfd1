"""What a user's mistake looks like on the screen: one line, wrapped where it is a terminal's.

Messages name a field as `config.optim.num_epochs`, as Python and `atss_jax.main` do; the console
command, whose flags are shorter, shows it as `--optim.num_epochs`.
"""

import contextlib
import re
import sys
from collections.abc import Generator

from atss_jax.runtime import screen

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


def show(problem: Exception | str) -> None:
    """Prints an error on stderr."""
    note(f"error: {problem}")


def note(text: str) -> None:
    """Prints what the user should know on stderr."""
    screen.show(as_flags(text) if _is_console else text, sys.stderr)


def as_flags(text: str) -> str:
    """A message with its fields as flags of `atss`.

    >>> as_flags("config.optim.lr: no such field. See docs/config.md and w/config.json.")
    '--optim.lr: no such field. See docs/config.md and w/config.json.'
    """
    return re.sub(r"(?<![\w./-])(?:--)?config\.(?=[a-z]+\.[a-z])", "--", text)
