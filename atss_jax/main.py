"""The command line: `python -m atss_jax.main --config=... --workdir=... --mode=...`.

Flags only. A wrong flag or field is rejected before JAX is imported.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from atss_jax.errors import UserError
from atss_jax.run import recipe_files, recipe_io

MODES = ("train", "eval", "train_and_eval", "predict", "export", "describe")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")


def main(argv: Sequence[str]) -> None:
    """Checks the recipe, then runs the mode."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {list(argv[1:])}: flags only.")
    if "config" not in flags.FLAGS:
        raise app.UsageError("--config is missing, as in --config=configs/quickstart.py.")
    recipe = recipe_io.recipe_from_mapping(flags.FLAGS.config.to_dict())
    if not _WORKDIR.value and _MODE.value != "describe":
        raise app.UsageError("--workdir is missing: the folder of the run.")

    from atss_jax.run import modes  # imports JAX: only after the flags are known to be right

    sys.exit(modes.run(_MODE.value, recipe, _WORKDIR.value or ""))


def split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config, None without one, and all other arguments.

    >>> split_config(["--config", "quickstart", "--mode=eval"])
    ('quickstart', ['--mode=eval'])
    """
    value, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name in ("--config", "-config"):
            value = text if equals else next(arguments, "")
        else:
            rest.append(argument)
    return value, rest


def check_flag_names(argv: Sequence[str]) -> str | None:
    """An error text for the first unknown flag or config field in `argv`, None if all exist."""
    known = {"config", "workdir", "mode", "help", "helpfull", "helpshort"}
    absl_flags = set(flags.FLAGS)
    for argument in argv:
        match = re.match(r"--?([A-Za-z_][\w.]*)", argument)
        if not match:
            continue
        name = match[1]
        if name.startswith("config."):
            field = name.removeprefix("config.")
            if field not in recipe_io.field_names():
                return recipe_io.unknown_field_message(field)
        elif (
            name not in known
            and name not in absl_flags
            and name.removeprefix("no") not in absl_flags
        ):
            near = difflib.get_close_matches(name, [*known, "config.group.field"], n=1, cutoff=0.0)
            return f"--{name}: no such flag. Did you mean --{near[0]}?"
    return None


def run_from_command_line() -> None:
    """Entry point: errors of the user are one line and exit code 2, not a traceback."""
    name, arguments = split_config(sys.argv[1:])
    error = check_flag_names(arguments)
    try:
        if error:
            raise UserError(error)
        if name is not None:
            config = recipe_files.load_recipe(name)
            config_flags.DEFINE_config_dict("config", config, sys_argv=[sys.argv[0], *arguments])
    except ValueError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    app.run(_friendly, argv=[sys.argv[0], *arguments])


def _friendly(argv: Sequence[str]) -> Any:
    try:
        return main(argv)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_from_command_line()
