"""A reader of arguments whose errors are one line, as all errors of a user are."""

import argparse
import textwrap
from typing import NoReturn

from atss_jax.errors import UserError


class HelpFormatter(argparse.HelpFormatter):
    """Help whose paragraphs are wrapped, and whose indented lines (examples) stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        paragraph: list[str] = []
        for line in [*text.strip().splitlines(), ""]:
            if line and not line.startswith(" "):
                paragraph.append(line)
                continue
            lines += textwrap.wrap(" ".join(paragraph), width)
            lines.append(line)
            paragraph = []
        return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines[:-1])


class Parser(argparse.ArgumentParser):
    """`argparse`'s parser without the usage before an error."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog}: {message}. See `{self.prog} --help`.")
