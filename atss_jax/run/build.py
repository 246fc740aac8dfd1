"""From a checked recipe to the objects of a run: data sets, plan, network, assigner, optimizer.

The only module that knows both the recipe's fields and everybody's keyword arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atss_jax.data import coco
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.dataset import DetectionDataset
from atss_jax.geometry.anchors import make_grid
from atss_jax.models.detector import Detector
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import parallel
from atss_jax.training import optim


def load_dataset(config: Recipe, split: str) -> DetectionDataset:
    """The "train" or "val" data set of a recipe.

    Raises:
      ValueError, FileNotFoundError: unknown source; missing or malformed data.
    """
    data = config.data
    checks: dict[str, Any] = {
        "on_error": data.on_error,
        "max_bad_fraction": data.max_bad_fraction,
        "exif": data.exif,
    }
    if data.source == "coco_json":
        annotations = getattr(data, f"{split}_annotations")
        images = getattr(data, f"{split}_images")
        for field, value in (("annotations", annotations), ("images", images)):
            if not value:
                raise ValueError(
                    f"config.data.{split}_{field} is empty. Give the path with "
                    f"--config.data.{split}_{field}=..."
                )
        return coco.load_coco(annotations, images, name=f"{data.name}/{split}", **checks)
    if data.source in ("tfds", "array_record"):
        from atss_jax.data import tfds_builders  # slow to import: only where it is used

        return tfds_builders.load_tfds(
            data.name, getattr(data, f"{split}_split"), data.data_dir, **checks
        )
    raise ValueError(
        f'config.data.source={data.source!r}: use "coco_json", "tfds" or "array_record".'
    )


def make_plan(config: Recipe, dataset: DetectionDataset) -> BatchPlan:
    """The endless plan of training batches."""
    data = config.data
    return BatchPlan(
        dataset.sizes,
        buckets=data.buckets,
        global_batch=data.global_batch,
        seed=config.run.seed,
        short_sides=data.train_short_sides or (data.short_side,),
        max_long_side=data.max_long_side,
        augmentations=data.augmentations,
        keep=dataset.has_objects if data.filter_empty else None,
        describe=dataset.describe,
    )


def num_steps(config: Recipe, plan: BatchPlan) -> int:
    """Updates of the run.

    Raises:
      ValueError: not exactly one of `num_steps` and `num_epochs` is given.
    """
    steps, epochs = config.optim.num_steps, config.optim.num_epochs
    if (steps > 0) == (epochs > 0):
        raise ValueError(
            f"config.optim.num_steps={steps}, num_epochs={epochs}: give one of them, 0 for the "
            "other."
        )
    return steps or max(1, round(epochs * plan.steps_per_epoch))


def make_model(config: Recipe, num_classes: int) -> Detector:
    """The network."""
    model = config.model
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    if model.dtype not in dtypes:
        raise ValueError(f"config.model.dtype={model.dtype!r}: use one of {', '.join(dtypes)}.")
    return Detector(
        num_classes=num_classes,
        num_anchors=make_grid(config.anchors, config.data.buckets[0]).num_per_location,
        backbone=model.backbone,
        flavour=model.flavour,
        backbone_norm=model.backbone_norm,
        width=model.width,
        frozen_stages=model.frozen_stages,
        dcn_stages=model.dcn_stages,
        fpn_channels=model.fpn_channels,
        p6_from=model.p6_from,
        relu_before_p7=model.relu_before_p7,
        head_convs=model.head_convs,
        head_norm=model.head_norm,
        head_dcn=model.head_dcn,
        level_scale=model.level_scale,
        centerness=model.centerness,
        regression=model.regression,
        point_activation=model.point_activation,
        dtype=dtypes[model.dtype],
        remat=model.remat,
    )


def init_variables(config: Recipe, model: Detector, seed: int) -> Any:
    """Random variables of the network, to be jitted: {"params": ..., "batch_stats": ...}."""
    images = jnp.zeros((1, *config.data.buckets[0], 3), jnp.float32)
    sizes = jnp.array([config.data.buckets[0]], jnp.int32)
    return model.init(jax.random.key(seed), images, sizes)


def train_batch_keywords(config: Recipe) -> dict[str, Any]:
    """Keywords of `data.loader.train_batches`, this process' share."""
    data = config.data
    return {
        "max_boxes": data.max_boxes,
        "on_overflow": data.on_overflow,
        "num_workers": data.num_workers,
        "prefetch": data.prefetch,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def eval_batch_keywords(config: Recipe) -> dict[str, Any]:
    """Keywords of `data.loader.eval_batches`, this process' share."""
    data = config.data
    return {
        "buckets": data.buckets,
        "short_side": data.short_side,
        "max_long_side": data.max_long_side,
        "batch_size": config.eval.batch_size,
        "max_boxes": data.max_boxes,
        "on_overflow": data.on_overflow,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def make_schedule(config: Recipe, steps: int) -> optim.Schedule:
    """The learning rate of a run of `steps` updates, scaled to its global batch."""
    o = config.optim
    return optim.make_schedule(
        learning_rate=optim.scaled_learning_rate(
            o.learning_rate,
            global_batch=config.data.global_batch,
            reference_batch=o.reference_batch,
            scaling=o.lr_scaling,
        ),
        kind=o.schedule,
        num_steps=steps,
        decay_steps=tuple(round(fraction * steps) for fraction in o.decay_at),
        decay_factor=o.decay_factor,
        warmup_steps=min(o.warmup_steps, steps // 2),
        warmup_factor=o.warmup_factor,
        warmup=o.warmup,
    )


def make_optimizer(config: Recipe, params: Any, frozen: Any, schedule: optim.Schedule):
    """The optimizer over `params`."""
    o = config.optim
    return optim.make_optimizer(
        params,
        frozen,
        name=o.name,
        schedule=schedule,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        bias_lr_factor=o.bias_lr_factor,
        bias_weight_decay=o.bias_weight_decay,
        clip_norm=o.clip_norm or None,
    )


def make_mesh(config: Recipe) -> Mesh:
    """Joins the job's processes and spans the mesh over all devices.

    Raises:
      ValueError: a batch does not divide over the devices.
    """
    run = config.run
    parallel.initialize(
        mode=run.distributed,
        coordinator=run.coordinator,
        num_processes=run.num_processes,
        process_id=run.process_id,
        timeout=run.init_timeout,
    )
    mesh = parallel.make_mesh()
    parallel.check_batch(config.data.global_batch, mesh, accumulate=config.optim.accumulate)
    parallel.check_batch(config.eval.batch_size, mesh)
    return mesh
