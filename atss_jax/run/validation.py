"""Evaluates states of a run on its validation set: during training, and by `--mode=eval`."""

import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from atss_jax.data import images, loader
from atss_jax.data.dataset import DetectionDataset
from atss_jax.evaluation import passes, whole_split
from atss_jax.models.detector import Detector
from atss_jax.run import build, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import checkpoint, parallel


class Outcome(NamedTuple):
    """What an evaluation found."""

    metrics: dict[str, float]
    """The 12 numbers and "AP/<class>"; empty for `eval.format_only`."""
    results: list[dict[str, Any]]
    """Detections in COCO's result format."""


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
        model: Detector,
        mesh: Mesh,
        *,
        dataset: DetectionDataset,
    ):
        self._config, self._mesh, self.dataset = config, mesh, dataset
        data = config.data
        self._passes = passes.make_passes(
            config.eval.multiscale, data.short_side, data.max_long_side
        )
        plain, mirrored = (
            whole_split.make_predict_step(
                model,
                build.make_grid(config),
                normalize=build.normalize_keywords(config),
                postprocess=build.postprocess_keywords(config),
                mesh=mesh,
                flip=flip,
            )
            for flip in (False, True)
        )
        self._steps = (plain, mirrored)

    def run(
        self, variables: Any, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Outcome | None:
        """Evaluates variables on every image once; None when told to stop.

        Args:
          variables: {"params": ..., "batch_stats": ...}.
          should_stop: asked between batches.
        """
        keywords = {
            "mesh": self._mesh,
            "backend": self._config.eval.backend,
            "with_metrics": not self._config.eval.format_only,
            "should_stop": should_stop,
        }
        if self._config.eval.multiscale == "none":
            batches = self._batches(self._passes[0])
            found = whole_split.evaluate(
                self._steps[0], variables, batches, self.dataset, **keywords
            )
        else:
            found = whole_split.evaluate_passes(
                self._steps, variables, self._batches, self._passes, self.dataset, **keywords
            )
        return None if found is None else Outcome(*found)

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


def restore_variables(config: Recipe, workdir: epath.Path, model: Detector, mesh: Mesh) -> Any:
    """(step, variables) of a workdir's newest readable checkpoint, without optimizer state.

    The averaged parameters where the run keeps them. Every device holds them whole.
    """
    variables = jax.eval_shape(lambda: build.init_variables(config, model, 0))
    name = "ema_params" if config.optim.ema_decay else "params"
    abstract = {name: variables["params"], "batch_stats": variables.get("batch_stats", {})}
    sharding = parallel.replicated(mesh)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract
    )
    step, found = checkpoint.restore_part(workdir / "checkpoints", abstract)
    return step, {"params": found[name], "batch_stats": found["batch_stats"]}


def evaluate_workdir(config: Recipe, workdir: epath.Path) -> Outcome:
    """`--mode=eval`: the newest checkpoint's metrics, into eval.json and detections.json."""
    workdir_files.claim_workdir(config, workdir, training=False)
    mesh = build.make_mesh(config)
    dataset = build.load_dataset(config, "val")
    workdir_files.check_classes(workdir, dataset.class_names, dataset.category_ids)
    model = build.make_model(config, len(dataset.class_names))
    step, variables = restore_variables(config, workdir, model, mesh)
    outcome = Validation(config, model, mesh, dataset=dataset).run(variables)
    if outcome is None:
        raise RuntimeError("the evaluation was stopped")
    if jax.process_index() == 0:
        workdir_files.write_json(workdir / "detections.json", outcome.results)
        if outcome.metrics:
            workdir_files.write_json(workdir / "eval.json", {"step": step, **outcome.metrics})
            print(summary(outcome.metrics))
        else:
            path = write_submission(workdir, config.data.name)
            print(f"{path}: {len(outcome.results)} detections to submit, no metrics")
    return outcome


def write_submission(workdir: epath.Path, name: str) -> epath.Path:
    """Packs detections.json as COCO's evaluation server wants it: one JSON file in a zip."""
    path = workdir / f"detections_{name.replace('/', '_')}_atss_results.zip"
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{path.stem}.json", (workdir / "detections.json").read_text())
    return path


NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers of the COCO evaluation."""


def summary(metrics: dict[str, float]) -> str:
    """The 12 numbers on one line, then AP by class."""
    line = "  ".join(f"{name} {metrics[name]:.4f}" for name in NUMBERS)
    classes = [
        f"{k.removeprefix('AP/')} {v:.3f}" for k, v in metrics.items() if k.startswith("AP/")
    ]
    return line + ("\nAP by class: " + ", ".join(classes) if classes else "")
