"""The command line: `python -m atss_jax.main --config=... --workdir=... --mode=...`.

Flags only. A wrong flag or field is rejected before JAX is imported. Without --config the recipe is
that of the workdir.
"""

import ast
import difflib
import json
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from atss_jax.run import stop_signal

if __name__ == "__main__":
    stop_signal.install()  # before what takes a second to import

from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from atss_jax.errors import UserError
from atss_jax.run import (
    given_paths,
    given_run,
    kept_length,
    recipe_changes,
    recipe_files,
    recipe_io,
)
from atss_jax.run.mode_table import MODES, READING_MODES
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import screen

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train_and_eval", tuple(MODES), "What to do.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", f"What {', '.join(READING_MODES)} read: last, best or a step."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "describe: what a compiler says of the recipe on v5e:2x2, h100:8, ..."
)
_PART = flags.DEFINE_string("part", "train", "describe with --topology: train, predict or a part.")


def main(argv: Sequence[str]) -> None:
    """Checks the recipe, then runs the mode.

    Raises:
      UserError: a flag is missing, or the recipe has a wrong value.
      SystemExit: the mode's exit code.
    """
    if len(argv) > 1:
        raise UserError(
            f"unexpected arguments {list(argv[1:])}: only flags may follow, see --help."
        )
    mode = MODES[_MODE.value]
    if not mode.needs_recipe:
        sys.exit(0 if mode.load()() else 1)
    if "config" not in flags.FLAGS:
        raise UserError(_no_config_message(_WORKDIR.value))
    recipe = recipe_io.recipe_from_mapping(flags.FLAGS.config.to_dict())
    if not _WORKDIR.value and mode.needs_workdir:
        raise UserError("--workdir is missing: the folder of the run.")
    if flags.FLAGS["checkpoint"].present and not mode.reads_checkpoint:
        raise UserError(
            f"--checkpoint={_CHECKPOINT.value} with --mode={_MODE.value}: only for "
            f"{', '.join(READING_MODES)}. Training goes on from the newest checkpoint."
        )

    if (_TOPOLOGY.value or flags.FLAGS["part"].present) and _MODE.value != "describe":
        raise UserError(f"--topology and --part with --mode={_MODE.value}: only for describe.")
    if flags.FLAGS["part"].present and not _TOPOLOGY.value:
        raise UserError(
            f"--part={_PART.value} without --topology: a part is compiled for a named device, as "
            "in --topology=v5e:2x2."
        )
    given_paths.check(recipe, _MODE.value, _WORKDIR.value or "", _CHECKPOINT.value)
    if not _MODE.value.startswith("train"):
        stop_signal.uninstall()
    if _TOPOLOGY.value:
        _describe_ahead(recipe)
        return
    from atss_jax.run import modes  # imports JAX: only after the flags are known to be right

    sys.exit(modes.run(_MODE.value, recipe, _WORKDIR.value or "", _CHECKPOINT.value))


def _describe_ahead(recipe: Recipe) -> None:
    """Prints what a compiler says of the recipe on devices that are not here."""
    from atss_jax.run.ahead import topology

    topology.prepare_environment(_TOPOLOGY.value)
    from atss_jax.run.ahead import command  # imports JAX: after the environment is set

    workdir = epath.Path(_WORKDIR.value) if _WORKDIR.value else None
    command.print_report(recipe, workdir, _TOPOLOGY.value, _PART.value)


def _no_config_message(workdir: str | None) -> str:
    """An error text for a command without a recipe."""
    example = "as in --config=configs/quickstart.py"
    if workdir:
        return (
            f"{workdir}: no run here, and --config is missing. Train first, check --workdir, or "
            f"give a recipe, {example}."
        )
    return f"--config is missing. Give a recipe, {example}."


def split_flag(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None without it, and all other arguments.

    >>> split_flag(["--config", "quickstart", "--mode=eval"], "config")
    ('quickstart', ['--mode=eval'])
    """
    value, rest = None, []
    arguments = list(argv)
    while arguments:
        name, equals, text = arguments[0].partition("=")
        argument = arguments.pop(0)
        if name not in (f"--{flag}", f"-{flag}"):
            rest.append(argument)
        elif equals or not arguments or arguments[0].startswith("-"):
            value = text
        else:
            value = arguments.pop(0)
    return value, rest


def check_flag_names(argv: Sequence[str]) -> str | None:
    """An error text for the first unknown flag or config field in `argv`, None if all exist."""
    known = {"config", "workdir", "mode", "help", "helpfull", "helpshort"}
    absl_flags = set(flags.FLAGS)
    for argument in argv:
        match = re.match(r"--?([A-Za-z_][\w.-]*)", argument)
        if not match:
            continue
        name = match[1]
        if re.match(r"(no)?config\.", name):
            field = name.partition(".")[2]
            if field not in recipe_io.field_names():
                return recipe_io.unknown_field_message(field)
        elif (
            name not in known
            and name not in absl_flags
            and name.removeprefix("no") not in absl_flags
        ):
            return _unknown_flag_message(name, known)
    return None


def _unknown_flag_message(name: str, known: Collection[str]) -> str:
    """Names the nearest flag, or the field that goes by this name elsewhere."""
    word = name.replace("-", "_")
    field = recipe_io.SYNONYMS.get(word, word)
    if field in recipe_io.field_names():
        return f"--{name}: no such flag. Did you mean --config.{field}?"
    if word in recipe_io.WITHOUT_FIELD:
        return f"--{name}: no such flag. {recipe_io.WITHOUT_FIELD[word]}"
    near = difflib.get_close_matches(name, [*known, "config.group.field"], n=1, cutoff=0.0)
    return f"--{name}: no such flag. Did you mean --{near[0]}?"


def numbers_for_auto(argv: Sequence[str]) -> list[str]:
    """Flags with "auto" replaced by the number that stands for it.

    >>> numbers_for_auto(["--config.data.image_size=auto", "--mode=eval"])
    ['--config.data.image_size=0', '--mode=eval']
    """
    flags = [f"--config.{name}=auto" for name in recipe_io.AUTO_FIELDS]
    numbers = [f"--config.{name}={value}" for name, value in recipe_io.AUTO_FIELDS.items()]
    return [numbers[flags.index(a)] if a in flags else a for a in argv]


def with_quoted_inputs(argv: Sequence[str]) -> list[str]:
    """Flags with every path of predict.input in quotes: it may hold a space, or be a number.

    A tuple of paths is left as it is.

    >>> with_quoted_inputs(["--config.predict.input=photo 1.jpg", "--mode=predict"])
    ['--config.predict.input="photo 1.jpg"', '--mode=predict']
    >>> with_quoted_inputs(["--config.predict.input=(old) a/b.jpg"])
    ['--config.predict.input="(old) a/b.jpg"']
    """
    flag, done = "--config.predict.input", []
    for before, argument in zip(["", *argv], argv, strict=False):
        start = argument.startswith(f"{flag}=") * len(f"{flag}=")
        path = argument[start:]
        if (start or before == flag) and not _is_tuple_of_texts(path):
            argument = argument[:start] + json.dumps(path, ensure_ascii=False)
        done.append(argument)
    return done


def _is_tuple_of_texts(text: str) -> bool:
    """Whether this is Python's notation of one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return isinstance(value, tuple) and all(isinstance(part, str) for part in value)


def run_from_command_line(argv: Sequence[str] | None = None) -> None:
    """Entry point: a `UserError` is one line and exit code 2; all others keep their traceback.

    Args:
      argv: flags, None for those of the process.
    """
    stop_signal.install()
    try:
        given = sys.argv[1:] if argv is None else argv
        name, arguments = split_flag(given, "config")
        error = check_flag_names(arguments)
        if error:
            raise UserError(error)
        arguments = given_paths.with_home(with_quoted_inputs(numbers_for_auto(arguments)))
        config = _find_config(name, arguments)
        if config is not None:
            config_flags.DEFINE_config_dict("config", config, sys_argv=[sys.argv[0], *arguments])
    except UserError as problem:
        _refuse(problem)
    app.run(_friendly, argv=[sys.argv[0], *arguments], flags_parser=_parse_flags)


def _find_config(name: str | None, arguments: Sequence[str]) -> ConfigDict | None:
    """The recipe that --config names, or else the workdir's; None where there is neither."""
    workdir, _ = split_flag(arguments, "workdir")
    mode, _ = split_flag(arguments, "mode")
    if name is not None:
        config = recipe_files.load_recipe(name)
        if workdir and (mode or _MODE.default).startswith("train"):
            _keep_length(config, name, workdir, arguments)
        return config
    given_paths.check_workdir(workdir or "")
    is_reading = mode in READING_MODES
    if workdir and is_reading and "://" not in workdir:
        given_run.check_folder(Path(workdir))
    path = epath.Path(workdir or "") / "config.json"
    if workdir and path.exists():
        recipe = recipe_io.read_recipe(path)
        if is_reading:
            recipe = recipe_changes.for_one_process(recipe)
        return ConfigDict(recipe_io.recipe_to_dict(recipe)).lock()
    if any(re.match(r"--?(no)?config\.", argument) for argument in arguments):
        raise UserError(_no_config_message(workdir))
    return None


def _keep_length(config: ConfigDict, name: str, workdir: str, arguments: Sequence[str]) -> None:
    """Puts the length of the run in a workdir into its recipe, unless another one is given."""
    matches = (re.match(r"--?config\.([\w.]+)", argument) for argument in arguments)
    given = {match[1] for match in matches if match}
    recipe = recipe_io.recipe_from_mapping(config.to_dict())
    fields, text = kept_length.of_run(recipe, name, workdir, given)
    config.update_from_flattened_dict(fields)
    if text:
        screen.show(text, sys.stderr)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """What is left of `argv` after all flags; a wrong value is an error of the user."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        _refuse(recipe_io.wrong_value_message(match[1], match[2]) if match else error)


def _friendly(argv: Sequence[str]) -> Any:
    try:
        return main(argv)
    except UserError as error:  # before the loop: there, `train` turns it into a LoopError
        _refuse(error)


def _refuse(problem: Exception | str) -> NoReturn:
    screen.show_error(problem)
    sys.exit(2)


if __name__ == "__main__":
    run_from_command_line()
