"""The console command: `atss train FOLDER`, `atss eval WORKDIR`, `atss config lr`, ...

Thin over `atss_jax.main` and the tools of `run/`: every command becomes the flags of the one or
the arguments of the other. Nothing here imports JAX, so the first line is on the screen at once.
"""

import argparse
import difflib
import importlib
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import atss_jax
from atss_jax.errors import UserError
from atss_jax.run import folder_fields, given_run, mode_table, stop_signal
from atss_jax.run.arguments import HelpFormatter, Parser
from atss_jax.run.recipe_io import default_workdir
from atss_jax.runtime import screen

EXAMPLES = """\
examples:
  atss train photos                         learn from images and labels
  atss train photos --optim.num_epochs=50   with a field of the recipe
  atss train --config=quickstart            a recipe that brings its data
  atss eval workdirs/photos                 AP of the newest checkpoint
  atss predict workdirs/photos a.jpg new    draw and list detections
  atss export workdirs/photos               files without this package
  atss report workdirs/photos               one HTML page about the run
  atss check photos                         what is in the data, what is odd
  atss config rate                          fields that "rate" stands in

`atss COMMAND --help` shows the arguments of one command. Every field of the recipe can be given to
train, eval, predict, export and describe as --group.field=value; `atss config` lists them.
"""


FIELDS_HELP = "Fields of the recipe: --group.field=value; `atss config` lists them."

MODES = {mode.command: name for name, mode in mode_table.MODES.items() if mode.command}
"""Command -> the mode of `atss_jax.main` that it is."""

TOOLS = {
    "report": ("atss_jax.run.report_command", "one HTML page about a run"),
    "check": ("atss_jax.run.check_data", "what is in a data set, and what is odd"),
    "browse": ("atss_jax.run.browse_data", "draw training batches as the network sees them"),
}
"""Command -> module with `main(arguments) -> exit code`, and what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
      arguments: without the program's name; None for those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    try:
        if command in TOOLS:
            _check_first_path(command, arguments[1:])
            module = importlib.import_module(TOOLS[command][0])
            return module.main(arguments[1:])
        if command in MODES:
            flags = main_flags(command, arguments[1:])
            from atss_jax.main import run_from_command_line  # the flags' library, 1 s

            with screen.of_console():
                run_from_command_line(flags)
            return 0
        _check_command(command)
        parser = _parser()
        parsed = parser.parse_args(arguments)
        if parsed.command == "config":
            from atss_jax.run import field_list

            words, recipe, source = field_list.find_recipe(parsed.words, parsed.config)
            width = shutil.get_terminal_size().columns
            print(field_list.describe_fields(" ".join(words), width, recipe, source))
        else:
            parser.print_help()
        return 0
    except UserError as error:
        with screen.of_console():
            screen.show_error(error)
        return 2


def run() -> None:
    """Entry point of the installed command."""
    if sys.argv[1:2] == ["train"]:
        stop_signal.install()  # before what takes a second to import
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="atss",
        description="Object detectors with adaptive training sample selection (ATSS), in JAX.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"atss_jax {atss_jax.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, mode in MODES.items():
        commands.add_parser(name, help=mode_table.MODES[mode].help)
    for name, (_, text) in TOOLS.items():
        commands.add_parser(name, help=text)
    fields = commands.add_parser("config", help="fields of the recipe: default, values, meaning")
    fields.add_argument(
        "words",
        nargs="*",
        help='in name or meaning, or a pattern like "optim.*"; or a run\'s folder',
    )
    fields.add_argument("--config", help="a recipe, whose values are shown beside the defaults")
    return parser


def main_flags(command: str, arguments: Sequence[str]) -> list[str]:
    """The flags of `atss_jax.main` for a command, and the first line on the screen.

    Args:
      command: a key of `MODES`.
      arguments: positional ones, --config, --workdir, and fields as --group.field=value.

    Raises:
      UserError: an argument is missing, or one too many.
    """
    mode = mode_table.MODES[MODES[command]]
    parser = Parser(
        prog=f"atss {command}",
        description=mode.help,
        epilog=f"{mode.more_help}\n{FIELDS_HELP}".strip(),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    for argument, help_text in mode.arguments.items():
        many = argument[-1] if argument[-1] in "?+" else None
        parser.add_argument(argument.rstrip("?+"), nargs=many, help=help_text)
    if "workdir" not in mode.arguments:
        parser.add_argument("--config", help="recipe: a name, or a path; see docs/recipes.md")
        parser.add_argument("--workdir", help="folder of the run; default: workdirs/NAME")
    if mode.reads_checkpoint:
        parser.add_argument("--checkpoint", help="last (the default), best (by AP) or a step")
    if command == "describe":
        parser.add_argument(
            "--topology", help="compile for v5e:2x2, h100:8, ...; no such device is needed"
        )
        parser.add_argument(
            "--part", help="with --topology: train (the default), predict, stem, head, ..."
        )
    words = sorted(_joined(arguments), key=lambda word: word.startswith("-"))
    given, rest = parser.parse_known_args(words)
    flags = [f"--mode={MODES[command]}", *map(_with_group, rest)]
    for name in ("checkpoint", "topology", "part"):
        if getattr(given, name, None) is not None:
            flags.append(f"--{name}={getattr(given, name)}")
    folder = getattr(given, "folder", None)
    config = getattr(given, "config", None)
    workdir = given.workdir if hasattr(given, "workdir") else None
    if command == "describe" and folder and (Path(folder) / "config.json").exists():
        workdir, folder = folder, None  # of a run
    if folder is not None:
        given_fields = [flag.removeprefix("--config.").partition("=")[0] for flag in flags]
        automatic = folder_fields.left_to_data(given_fields)
        flags.append(f"--config.data.root={folder}")
        flags += [f"--config.{name}={value}" for name, value in automatic.items()]
        config = config or "coco_json"
    if command == "train":
        if config is None:
            raise UserError("atss train: give a folder of data, or --config=RECIPE; see --help.")
        workdir = workdir or str(default_workdir(folder or config))
        print(f"atss_jax {atss_jax.__version__}: {folder or config} -> {workdir}", flush=True)
    if command == "describe" and config is None and workdir is None:
        raise UserError("atss describe: give a folder (of data or of a run), or --config=RECIPE.")
    if config is not None:
        flags.append(f"--config={config}")
    if workdir is not None:
        flags.append(f"--workdir={workdir}")
    if command == "predict":
        given_run.check_order(given.workdir, given.input)
        flags += [f"--config.predict.input={path}" for path in given.input]
    return flags


def _check_command(word: str) -> None:
    """Raises UserError for a word that is no command."""
    known = [*MODES, *TOOLS, "config"]
    if word.startswith("-") or word in known:
        return
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"Did you mean `atss {near[0]}`?" if near else "`atss --help` lists them."
    raise UserError(f"atss {word}: no such command. {hint}")


def _check_first_path(command: str, arguments: Sequence[str]) -> None:
    """Raises UserError for a folder that is not there, before a tool's slow imports."""
    from atss_jax.run import given_paths, recipe_io

    path = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if path and command in ("check", "browse"):
        given_paths.check_root(recipe_io.expand_user(path))


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--group.field value` as one word, so that positional ones may stand anywhere.

    >>> _joined(["w", "--predict.score_threshold", "0.5", "a.jpg", "--run.fsdp"])
    ['w', '--predict.score_threshold=0.5', 'a.jpg', '--run.fsdp']
    """
    from atss_jax.config import field_infos
    from atss_jax.run.recipe_io import GROUPS

    infos = [info for group in GROUPS.values() for info in field_infos(group)]
    with_value = {f"{i.group}.{i.name}" for i in infos if i.type != "bool"}
    with_value |= {"config", "workdir", "checkpoint", "topology", "part"}
    words: list[str] = []
    for argument in arguments:
        before = words[-1] if words else ""
        name = before.removeprefix("--").removeprefix("config.")
        is_value = before.startswith("--") and name in with_value and argument[:1] != "-"
        if is_value:
            words[-1] = f"{before}={argument}"
        else:
            words.append(argument)
    return words


def _with_group(flag: str) -> str:
    """`--optim.x=1` -> `--config.optim.x=1`; anything else as it is.

    >>> _with_group("--optim.num_steps=5"), _with_group("--lr=1")
    ('--config.optim.num_steps=5', '--lr=1')
    """
    return re.sub(r"^--(no)?(?!config\.)(?=\w+\.\w)", lambda m: f"--{m[1] or ''}config.", flag)


if __name__ == "__main__":
    run()
