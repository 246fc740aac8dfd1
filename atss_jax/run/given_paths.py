"""Paths that the user named are looked at before anything slow is imported.

What is found here is found again, with more detail, by the reader of the file; this module exists
so that a wrong path is a message after a second. It imports no JAX.
"""

import importlib.util
import os
from collections.abc import Sequence

from atss_jax.data.config import DataConfig
from atss_jax.errors import MissingFileError, UserError
from atss_jax.run import given_run, recipe_io
from atss_jax.run.config import PredictConfig
from atss_jax.run.mode_table import MODES
from atss_jax.run.recipe import Recipe

_WEIGHTS_HINT = (
    "Give a weight file, the workdir of a run, a name of the Hugging Face Hub such as "
    'timm/resnet50.tv_in1k, or "" for a random start; see docs/recipes.md.'
)


def check(recipe: Recipe, mode: str, workdir: str, checkpoint: str = "last") -> None:
    """Raises for a path that cannot work.

    Args:
      recipe: with the paths.
      mode: of `mode_table.MODES`.
      workdir: folder of the run; "" without one.
      checkpoint: that eval, predict and export read.

    Raises:
      UserError: what is wrong with which path.
    """
    check_workdir(workdir)
    if mode.startswith("train"):
        _check_data(recipe.data, ("train", "val") if mode == "train_and_eval" else ("train",))
        if not os.path.isdir(os.path.join(workdir, "checkpoints")):  # a resumed run reads none
            _check_weights(recipe.model.init_from)
    if MODES[mode].reads_checkpoint:
        given_run.check(workdir, checkpoint)
    if mode == "eval" and not (recipe.data.root and recipe.data.val_annotations):
        _check_data(recipe.data, ("val",))
    if mode == "export" and recipe.export.format == "onnx":
        _check_onnx()
    if mode == "predict":
        _check_input(recipe.predict, workdir)


def with_home(argv: Sequence[str]) -> list[str]:
    """Flags with "~" written out in --workdir; paths of the recipe are by `recipe_from_mapping`.

    >>> home = os.path.expanduser("~")
    >>> with_home(["--workdir=~/mine", "--mode=eval"]) == [f"--workdir={home}/mine", "--mode=eval"]
    True
    """
    done = []
    for before, argument in zip(["", *argv], argv, strict=False):
        name, equals, path = argument.partition("=")
        if equals and name in ("--workdir", "-workdir"):
            argument = f"{name}={recipe_io.expand_user(path)}"
        elif before in ("--workdir", "-workdir"):
            argument = recipe_io.expand_user(argument)
        done.append(argument)
    return done


def check_workdir(workdir: str) -> None:
    """Raises UserError where the folder of the run, or one above it, is a file."""
    path = "" if _is_remote(workdir) else workdir
    while path and not os.path.isdir(path):
        if os.path.exists(path):
            raise UserError(f"--workdir={workdir}: {path} is a file. Give a folder.")
        path = os.path.dirname(path.rstrip("/"))


def check_root(root: str) -> None:
    """Raises UserError unless there is a folder or file of this name, with something in it."""
    if not os.path.exists(root):
        raise MissingFileError(f"data.root={root!r}: no such folder (a local one is needed).")
    if os.path.isdir(root) and not os.listdir(root):
        raise UserError(
            f"data.root={root!r}: the folder is empty. Give one with images and annotations in "
            "COCO, Roboflow, YOLO or Pascal VOC layout; see docs/own_data.md."
        )
    if os.path.isfile(root) and not root.endswith((".json", ".yaml", ".yml")):
        raise UserError(
            f"data.root={root!r}: neither a folder, nor a data.yaml, nor a COCO JSON file with "
            "images and annotations."
        )


def _check_data(data: DataConfig, splits: Sequence[str]) -> None:
    if data.root:
        check_root(data.root)
    elif data.source == "coco_json":
        for split in splits:
            for kind in ("annotations", "images"):
                name = f"{split}_{kind}"
                path = getattr(data, name)
                if not path:
                    other = ", or --mode=train (no evaluation)" if len(splits) == 2 else ""
                    raise UserError(
                        f"config.data.{name} is empty. Give the path{other}, or the folder of "
                        "your data as config.data.root."
                    )
                if not _is_remote(path) and not os.path.exists(path):
                    raise MissingFileError(
                        f"config.data.{name}={path!r} does not exist. Check the path."
                    )


def _check_weights(path: str) -> None:
    from atss_jax.models import hub

    if hub.is_hub_name(path) and not path.startswith("workdirs/"):
        name = hub.parse_name(path)
        hub.check_client(name, name.file or hub.WEIGHTS_FILE, option="config.model.init_from")
        return
    if not path or _is_remote(path):
        return
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "config.json")):
            raise UserError(
                f"config.model.init_from={path!r}: a folder without config.json. {_WEIGHTS_HINT}"
            )
    elif not os.path.exists(path):
        raise MissingFileError(
            f"config.model.init_from={path!r}: no such file or folder. {_WEIGHTS_HINT}"
        )


def _check_input(predict: PredictConfig, workdir: str) -> None:
    from atss_jax.data import media_files

    if not any(predict.input):
        raise UserError(f"config.predict.input is empty. {media_files.HINT}")
    output = predict.output or os.path.join(workdir, "predictions")
    place = output
    while place and not _is_remote(place) and not os.path.isdir(place):
        if os.path.exists(place):
            raise UserError(f"config.predict.output={output!r}: {place} is a file. Give a folder.")
        place = os.path.dirname(place.rstrip("/"))
    media_files.check_readable(media_files.find(predict.input, output))


def _check_onnx() -> None:
    missing = [name for name in ("jax2onnx", "onnx") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f'config.export.format="onnx" needs {" and ".join(missing)}, not installed here; see '
            'docs/export.md. Without it use config.export.format="stablehlo".'
        )


def _is_remote(path: str) -> bool:
    return "://" in path
