"""Evaluates states of a run on its validation set: during training, and by `--mode=eval`."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from atss_jax.data import images, loader, sources
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.evaluation import passes
from atss_jax.evaluation.coco_metrics import known_or_none, metric_names
from atss_jax.evaluation.whole_split import Outcome, PlannedPass, detect_all, evaluate
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import build, classes, evaluation_folder, predict_steps, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import checkpoint, parallel, screen
from atss_jax.runtime.screen import JOINT
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState


class Validation:
    """The predict step, compiled once, and the data set that it is evaluated on.

    Args:
      config: the recipe.
      model: the network.
      mesh: the devices.
      dataset: the validation set.
    """

    def __init__(
        self,
        config: Recipe,
        model: DetectorNetwork,
        mesh: Mesh,
        *,
        dataset: DetectionDataset,
    ):
        self._config, self._mesh, self.dataset = config, mesh, dataset
        self._looks = predict_steps.make_looks(config, model, mesh=mesh)

    def run(
        self, variables: Any, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Outcome | None:
        """Evaluates variables on every image once; None when told to stop.

        Args:
          variables: {"params": ..., "batch_stats": ...}.
          should_stop: asked between batches.
        """
        return evaluate(
            [
                PlannedPass(
                    look.settings,
                    look.predict_step,
                    functools.partial(self._batches, look.settings),
                )
                for look in self._looks
            ],
            variables,
            self.dataset,
            mesh=self._mesh,
            backend=self._config.eval.backend,
            with_metrics=not self._config.eval.format_only,
            max_detections=self._config.eval.max_detections,
            should_stop=should_stop,
        )

    def try_first_batch(self, variables: Any) -> None:
        """Detects in the first batch of the first pass: an error there is known before training."""
        look = self._looks[0]
        with self._batches(look.settings) as batches:
            first = iter([next(batches)])
        detect_all(look.predict_step, variables, first, mesh=self._mesh)

    def estimated_seconds(self, state: TrainState) -> float:
        """Seconds of an evaluation, from one batch of the first pass; call after it was tried."""
        started = time.monotonic()
        self.try_first_batch(train_step.eval_variables(state))
        batches = math.ceil(self.dataset.num_records / self._config.eval.batch_size)
        return (time.monotonic() - started) * batches * len(self._looks)

    def _batches(self, one_pass: passes.Pass) -> loader.Batches:
        """Every image once, at the size of a pass."""
        data, dataset = self._config.data, self.dataset
        sizes = None
        if one_pass.short_side != data.short_side:
            targets = [
                images.resized_size((h, w), one_pass.short_side, one_pass.max_long_side)
                for h, w in dataset.sizes.tolist()
            ]
            buckets = passes.pass_buckets(
                np.array(targets), data.buckets, one_pass.short_side / data.short_side
            )
            sizes = build.EvalSizes(buckets, one_pass.short_side, one_pass.max_long_side)
        return build.eval_batches(self._config, dataset, sizes)


def restore_variables(
    config: Recipe,
    workdir: epath.Path,
    model: DetectorNetwork,
    mesh: Mesh,
    *,
    which: str = "last",
) -> Any:
    """(step, variables) of a workdir's checkpoint, without optimizer state.

    The averages where the run keeps them. Every device holds them whole.

    Args:
      config: the recipe.
      workdir: folder of the run.
      model: the network.
      mesh: the devices.
      which: "last" (that can be read), "best" or a step; see `checkpoint_record.chosen_steps`.
    """
    variables = jax.eval_shape(lambda: init_variables(model, config.data.buckets[0], 0))
    is_averaged = config.optim.ema_decay > 0
    name = "ema_params" if is_averaged else "params"
    has_statistics = is_averaged and config.model.backbone_norm == "batch_norm"
    statistics = "ema_batch_stats" if has_statistics else "batch_stats"
    abstract = {name: variables["params"], statistics: variables.get("batch_stats", {})}
    sharding = parallel.replicated(mesh)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract
    )
    step, found = checkpoint.restore_part(workdir / "checkpoints", abstract, which)
    return step, {"params": found[name], "batch_stats": found[statistics]}


def evaluate_workdir(config: Recipe, workdir: epath.Path, checkpoint: str = "last") -> Outcome:
    """`--mode=eval`: detections and metrics of the "val" split, into a folder of their own.

    Args:
      config: the recipe; what differs from the workdir's must leave the network alone.
      workdir: folder of the run.
      checkpoint: "last", "best" or a step.

    Raises:
      UserError: no run there, no such checkpoint, or data with other classes.
    """
    build.join(config)
    changed = {change.name for change in workdir_files.open_workdir(config, workdir)}
    config = dataclasses.replace(config, data=evaluated_data(config.data, changed))
    mesh = build.make_mesh(config)
    dataset = build.load_dataset(config, "val")
    trained = classes.read_classes(workdir)
    if trained is not None:
        dataset = classes.in_order_of(dataset, trained[0], f"the network in {workdir}")
    num_classes = len(dataset.class_names)
    model = DetectorNetwork(config.model, num_classes, config.anchors.num_per_location)
    step, variables = restore_variables(config, workdir, model, mesh, which=checkpoint)
    if jax.process_index() == 0:
        name, augmentation = evaluation_folder.split_name(config), config.eval.multiscale
        objects = "" if config.eval.format_only else f", {int(dataset.num_boxes.sum())} objects"
        screen.show(
            f"step {step} ({checkpoint}), split {name}, {dataset.num_records} images{objects}, "
            f"test-time augmentation {augmentation}"
        )
        workdir_files.make_folder(workdir / "eval", "--workdir")  # before an hour of detection
    outcome = Validation(config, model, mesh, dataset=dataset).run(variables)
    if outcome is None:
        raise RuntimeError("the evaluation was stopped")
    if jax.process_index() == 0:
        folder = evaluation_folder.write_evaluation(
            config, workdir, dataset, outcome, step, checkpoint
        )
        if outcome.metrics:
            files = f"{folder}: result.json, detections.json, pictures"
            screen.show(f"{summary(outcome.metrics)}\n{files}")
    return outcome


def evaluated_data(data: DataConfig, changed: Collection[str]) -> DataConfig:
    """Where an evaluation reads: files that its command names count, whatever the run read.

    Args:
      data: of the run, with what the command changed.
      changed: "group.field" of what it changed.
    """
    if not {"data.val_annotations", "data.val_images"} & set(changed):
        return data
    if data.root:  # otherwise the split that was found below the folder
        return sources.without_root(data)
    return dataclasses.replace(data, source="coco_json")


def summary(metrics: Mapping[str, float]) -> str:
    """The COCO numbers on one line, then AP by class; "-" where there was no object to find.

    For the screen: names and values are joined by `screen.JOINT`.
    """
    known = known_or_none(metrics)

    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    line = "  ".join(f"{name}{JOINT}{text(known[name], 4)}" for name in metric_names(known))
    classes = [
        f"{k.removeprefix('AP/')}{JOINT}{text(v, 3)}"
        for k, v in known.items()
        if k.startswith("AP/")
    ]
    return line + ("\nAP by class: " + ", ".join(classes) if classes else "")
