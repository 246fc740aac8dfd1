"""What `atss train` would make of a set, for the tools that look at data before a training."""

import argparse
import dataclasses
from pathlib import Path

from atss_jax.data.dataset import DetectionDataset
from atss_jax.errors import UserError
from atss_jax.run import auto_fields, recipe_files, recipe_io
from atss_jax.run.recipe import Recipe

RECIPE = "coco_json"
"""The recipe of `atss train FOLDER`."""
SIZE_FIELDS = ("short_side", "max_long_side", "buckets")


def add_image_size_argument(parser: argparse.ArgumentParser) -> None:
    """The field of the recipe that a training may also be given."""
    parser.add_argument(
        "--data.image_size",
        dest="image_size",
        type=_image_size,
        metavar="PX",
        help="long side, as for `atss train`; default: as that chooses",
    )


def _image_size(text: str) -> int:
    return 0 if text == "auto" else int(text)


def resolve(
    train_set: DetectionDataset, val_set: DetectionDataset | None, image_size: int | None = None
) -> tuple[Recipe, str]:
    """The recipe of `atss train FOLDER` in numbers, and what is said about its sizes.

    Args:
      train_set: images to train on.
      val_set: images to evaluate, None for none.
      image_size: long side, px; None or 0 to choose it from the data.

    Raises:
      UserError: a size that is too small.
    """
    recipe = recipe_io.recipe_from_mapping(recipe_files.load_recipe(RECIPE).to_dict())
    data = dataclasses.replace(recipe.data, image_size=image_size or 0, max_boxes=0)
    recipe, lines = auto_fields.resolve(dataclasses.replace(recipe, data=data), train_set, val_set)
    warnings = [line for line in lines if line.startswith("!")]
    return recipe, "\n".join([f"as in `atss train`: {lines[0]}", *warnings])


def of_run(folder: str) -> Recipe | None:
    """The recipe of a run's folder; None for any other folder."""
    path = Path(folder) / "config.json"
    return recipe_io.read_recipe(path) if folder and path.is_file() else None


def check_sizes_given_once(args: argparse.Namespace, names: tuple[str, ...]) -> bool:
    """Whether one of the sizes is given by itself.

    Raises:
      UserError: and --data.image_size, which derives them, too.
    """
    given = [name for name in names if getattr(args, name) is not None]
    if given and args.image_size is not None:
        raise UserError(
            f"--data.image_size and --{given[0]} are both given, and the first derives the second. "
            "Leave one of them out."
        )
    return bool(given)
