"""Evaluates states of a run on its validation set: during training, and by `--mode=eval`."""

import functools
import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from atss_jax.data import images, loader
from atss_jax.data.dataset import DetectionDataset
from atss_jax.evaluation import passes
from atss_jax.evaluation.coco_metrics import METRICS, known_or_none
from atss_jax.evaluation.coco_results import detections_to_coco, write_results
from atss_jax.evaluation.whole_split import Outcome, PlannedPass, detect_all, evaluate
from atss_jax.files import write_whole
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import build, predict_steps, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import checkpoint, parallel
from atss_jax.structures import Detections


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
            should_stop=should_stop,
        )

    def try_first_batch(self, variables: Any) -> None:
        """Detects in the first batch of the first pass: an error there is known before training."""
        look = self._looks[0]
        with self._batches(look.settings) as batches:
            first = iter([next(batches)])
        detect_all(look.predict_step, variables, first, mesh=self._mesh)

    def _batches(self, one_pass: passes.Pass) -> loader.Batches:
        """Every image once, at the size of a pass."""
        data, dataset = self._config.data, self.dataset
        keywords = build.eval_batch_keywords(self._config)
        if one_pass.short_side != data.short_side:
            targets = [
                images.resized_size((h, w), one_pass.short_side, one_pass.max_long_side)
                for h, w in dataset.sizes.tolist()
            ]
            keywords["buckets"] = passes.pass_buckets(
                np.array(targets), data.buckets, one_pass.short_side / data.short_side
            )
            keywords["short_side"] = one_pass.short_side
            keywords["max_long_side"] = one_pass.max_long_side
        return loader.eval_batches(dataset, **keywords)


def check_same_classes(train_set: DetectionDataset, val_set: DetectionDataset) -> None:
    """Raises unless both sets have the same classes in the same order."""
    if train_set.class_names != val_set.class_names:
        raise ValueError(
            f"the classes of {train_set.name} and {val_set.name} differ: "
            f"{train_set.class_names} and {val_set.class_names}. Use the same categories in both."
        )


def restore_variables(
    config: Recipe, workdir: epath.Path, model: DetectorNetwork, mesh: Mesh
) -> Any:
    """(step, variables) of a workdir's newest readable checkpoint, without optimizer state.

    The averages where the run keeps them. Every device holds them whole.
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
    step, found = checkpoint.restore_part(workdir / "checkpoints", abstract)
    return step, {"params": found[name], "batch_stats": found[statistics]}


def evaluate_workdir(config: Recipe, workdir: epath.Path) -> Outcome:
    """`--mode=eval`: the newest checkpoint's metrics, into eval.json and detections.json."""
    workdir_files.claim_workdir(config, workdir, training=False)
    mesh = build.make_mesh(config)
    dataset = build.load_dataset(config, "val")
    workdir_files.check_classes(workdir, dataset.class_names, dataset.category_ids)
    num_classes = len(dataset.class_names)
    model = DetectorNetwork(config.model, num_classes, config.anchors.num_per_location)
    step, variables = restore_variables(config, workdir, model, mesh)
    outcome = Validation(config, model, mesh, dataset=dataset).run(variables)
    if outcome is None:
        raise RuntimeError("the evaluation was stopped")
    if jax.process_index() == 0:
        count = write_detections(workdir, dataset, outcome.detections)
        if outcome.metrics:
            found = {"step": step, **known_or_none(outcome.metrics)}
            workdir_files.write_json(workdir / "eval.json", found)
            print(summary(outcome.metrics))
        else:
            path = write_submission(workdir, config.data.name)
            print(f"{path}: {count} detections to submit, no metrics")
    return outcome


def write_detections(workdir: epath.Path, dataset: DetectionDataset, detections: Detections) -> int:
    """Writes detections.json, COCO's result format; returns how many detections it holds.

    Args:
      workdir: folder of the run.
      dataset: the evaluated set.
      detections: of an `Outcome`.
    """
    results = detections_to_coco(detections, dataset.image_ids, dataset.category_ids)
    write_results(workdir / "detections.json", dataset.original_results(results))
    return len(results)


def write_submission(workdir: epath.Path, name: str) -> epath.Path:
    """Packs detections.json as COCO's evaluation server wants it: one JSON file in a zip."""
    path = workdir / f"detections_{name.replace('/', '_')}_atss_results.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{path.stem}.json", (workdir / "detections.json").read_text())
    write_whole(path, buffer.getvalue())
    return path


def summary(metrics: Mapping[str, float]) -> str:
    """The 12 numbers on one line, then AP by class; "-" where there was no object to find."""
    known = known_or_none(metrics)

    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    line = "  ".join(f"{name} {text(known[name], 4)}" for name in METRICS)
    classes = [
        f"{k.removeprefix('AP/')} {text(v, 3)}" for k, v in known.items() if k.startswith("AP/")
    ]
    return line + ("\nAP by class: " + ", ".join(classes) if classes else "")
