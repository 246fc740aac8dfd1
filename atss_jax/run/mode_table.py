"""The modes of the command line, one row each: a new mode is a row here and the function it names.

`main` makes the values of --mode of it, `cli` the commands of `atss`, and `modes.run` calls the
function. Nothing heavy is imported before that.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Mode(NamedTuple):
    """What the command line needs to know about a mode."""

    function: str
    """"module:name" below `atss_jax.run`: a function of (recipe, workdir, checkpoint) that returns
    nothing or an exit code; without a recipe, of nothing, that returns whether all is well."""
    command: str = ""
    """The `atss` command that runs it; "" for none."""
    help: str = ""
    """Of that command."""
    arguments: Mapping[str, str] = MappingProxyType({})
    """Its positional arguments in order, each with its meaning. At the end of a name, "?" makes it
    optional, and "+" takes several."""
    more_help: str = ""
    """Below the rest of its --help."""
    reads_checkpoint: bool = False
    needs_workdir: bool = True
    needs_recipe: bool = True

    def load(self) -> Callable[..., Any]:
        """The function."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"atss_jax.run.{module}"), name)


_WORKDIR = "folder of a run, as in workdirs/NAME"

MODES = {
    "train": Mode("modes:train_only"),
    "eval": Mode(
        *("validation:evaluate_workdir", "eval", "average precision of a run's checkpoint"),
        arguments={"workdir": _WORKDIR},
        reads_checkpoint=True,
    ),
    "train_and_eval": Mode(
        *("modes:train_and_eval", "train", "train on a folder, or on a recipe's data"),
        arguments={"folder?": "images and labels; see docs/own_data.md"},
    ),
    "predict": Mode(
        *("predict:predict_workdir", "predict", "detections in images or videos"),
        arguments={
            "workdir": _WORKDIR,
            "input+": "images, folders (with those below), videos, or patterns in quotes",
        },
        more_help="""\
example:
  atss predict workdirs/mine a.jpg trip clip.mp4 --predict.score_threshold=0.5

A file that is named twice is looked at once. Drawings, detections.json and detections.csv go into
the folder `predictions` of the run, or into --predict.output=FOLDER.
""",
        reads_checkpoint=True,
    ),
    "export": Mode(
        *("export:export_workdir", "export", "files that run without this package"),
        arguments={"workdir": _WORKDIR},
        reads_checkpoint=True,
    ),
    "describe": Mode(
        *("modes:print_description", "describe", "parameters, sizes and memory before training"),
        arguments={"folder?": "of data, or of a run"},
        needs_workdir=False,
    ),
    "selftest": Mode(
        *("selftest.report:selftest", "selftest", "check the numbers of this machine"),
        needs_workdir=False,
        needs_recipe=False,
    ),
}
"""Value of --mode -> its row."""

READING_MODES = tuple(name for name, mode in MODES.items() if mode.reads_checkpoint)
"""Modes that read a checkpoint."""
