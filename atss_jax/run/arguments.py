"""A reader of arguments whose errors are one line, as all errors of a user are."""

import argparse
from typing import NoReturn

from atss_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """`argparse`'s parser without the usage before an error."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog}: {message}. See `{self.prog} --help`.")
