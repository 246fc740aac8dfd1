"""`atss_jax.train("folder")`: training from Python, and what a finished run offers."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import folder_fields, kept_length, recipe_files, recipe_io
from atss_jax.run.detector import Detector
from atss_jax.run.train import train as train_recipe
from atss_jax.runtime import screen
from atss_jax.runtime.metric_writer import quiet_dependencies, read_rows


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A finished run. Notebooks show its curves.

    Attributes:
      workdir: its folder.
      result: the content of result.json.
    """

    workdir: Path
    result: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Of the last evaluation: "AP", "AP50" and so on, as shares of 1; None without objects."""
        return self.result.get("metrics") or {}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: losses by step, metrics by evaluation."""
        return read_rows(self.workdir / "metrics.jsonl")

    def detector(self, **options: Any) -> Detector:
        """The trained detector.

        Args:
          **options: of `Detector.load`, such as `checkpoint`.

        Raises:
          UserError: as `Detector.load`.
        """
        return Detector.load(self.workdir, **options)

    def __repr__(self) -> str:
        """Folder, steps and AP, as in "Run(workdirs/photos: 400 steps, AP 0.512)"."""
        value = self.metrics.get("AP")
        found = "" if value is None else f", AP {value:.3f}"
        return f"Run({self.workdir}: {self.result['steps']} steps{found})"

    def _repr_png_(self) -> bytes | None:
        curves = self.workdir / "pictures" / "curves.png"
        return curves.read_bytes() if curves.is_file() else None


def train(
    folder: str | Path = "",
    *,
    workdir: str | Path = "",
    config: str = "coco_json",
    epochs: int | float | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Run:
    """Trains a detector on a folder of images and labels; the same call goes on after a stop.

    Args:
      folder: COCO, YOLO, Pascal VOC or Roboflow layout; "" for a recipe that brings its data.
      workdir: folder of the run; "" is workdirs/ and the name of `folder` or of the recipe.
      config: recipe, by name or path.
      epochs: passes over the training images; None for the length of the run that the folder
        holds, or else the recipe's.
      image_size: long side of the network's input, px; None chooses it from the data.
      batch_size: images per step; 0 takes as many as fit; None for the recipe's.
      fields: further fields, as in {"optim.ema_decay": 0.99}.

    Raises:
      UserError: a wrong value, or data that cannot be read.

    >>> train("photos", epochs=10, fields={"run.sed": 1})
    Traceback (most recent call last):
    atss_jax.errors.UserError: config.run.sed: no such field. Did you mean config.run.seed?
    """
    quiet_dependencies()
    folder, workdir = recipe_io.expand_user(folder), recipe_io.expand_user(workdir)
    values = recipe_files.load_recipe(config).to_dict()
    given: dict[str, Any] = {}
    if folder:
        given["data.root"] = str(folder)
    if image_size is not None:
        given["data.image_size"] = image_size
    if epochs is not None:
        given |= {"optim.num_epochs": float(epochs), "optim.num_steps": 0}
    if batch_size is not None:
        given["data.global_batch"] = batch_size
    place = Path(workdir) if str(workdir) else recipe_io.default_workdir(str(folder) or config)
    given |= fields or {}
    if folder:
        given = folder_fields.left_to_data(given) | given
    base = recipe_io.recipe_from_mapping(values)
    kept, text = kept_length.of_run(base, config, place, given)
    if text:
        screen.show(text, sys.stderr)
    for name, value in {**kept, **given}.items():
        if name not in recipe_io.field_names():
            raise UserError(recipe_io.unknown_field_message(name))
        group, _, field = name.partition(".")
        values[group][field] = value
    recipe = recipe_io.recipe_from_mapping(values)
    train_recipe(recipe, epath.Path(place), with_evaluation=True)
    return Run(place, json.loads((place / "result.json").read_text()))
