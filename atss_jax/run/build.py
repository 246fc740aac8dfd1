"""From a checked recipe to the objects of a run: data sets, plan, mesh.

The only module that knows both the recipe's fields and everybody's arguments.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from atss_jax.data import loader, sources
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.dataset import DetectionDataset
from atss_jax.run import classes, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import parallel, peers


class EvalSizes(NamedTuple):
    """What images are resized to and padded to in one pass of an evaluation."""

    buckets: tuple[tuple[int, int], ...]
    """Padded shapes (H, W)."""
    short_side: int
    """px."""
    max_long_side: int
    """px."""


def load_dataset(config: Recipe, split: str) -> DetectionDataset:
    """The "train" or "val" data set of a recipe.

    Raises:
      ValueError, FileNotFoundError: missing or malformed data.
    """
    return sources.load_split(
        config.data, split, without_annotations=split == "val" and config.eval.format_only
    )


def load_sets(
    config: Recipe, keep_classes: Sequence[str] = ()
) -> tuple[DetectionDataset, DetectionDataset]:
    """(training set, validation set), without the classes that neither has a box of.

    Args:
      config: the recipe; `data.unused_classes` may keep them.
      keep_classes: names that stay.

    Raises:
      ValueError, FileNotFoundError: missing or malformed data, or different classes.
    """
    train, val = load_dataset(config, "train"), load_dataset(config, "val")
    if config.data.unused_classes == "drop":
        train = classes.without_unused(train, val, keep_classes)
    return train, classes.in_order_of(val, train.class_names, train.name)


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


def data_digest(dataset: DetectionDataset, plan: BatchPlan) -> str:
    """Equal for data that train alike: ids, sizes, boxes, names, and the plan of their batches."""
    digest = hashlib.sha256(repr((dataset.class_names, dataset.category_ids)).encode())
    found = dataset.annotations
    columns = (found.record, found.category_id, found.xywh, found.is_crowd)
    for array in (dataset.image_ids, dataset.sizes, dataset.orientations, *columns):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{digest.hexdigest()} {plan.fingerprint()}"


def train_batches(
    config: Recipe, dataset: DetectionDataset, plan: BatchPlan, start_step: int
) -> loader.Batches:
    """This process' share of the training batches from a step on."""
    data = config.data
    return loader.train_batches(
        dataset,
        plan,
        start_step=start_step,
        max_boxes=data.max_boxes,
        on_overflow=data.on_overflow,
        num_workers=data.num_workers,
        prefetch=data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def eval_batches(
    config: Recipe, dataset: DetectionDataset, sizes: EvalSizes | None = None
) -> loader.Batches:
    """This process' share of every image once; at the recipe's sizes without `sizes`."""
    data = config.data
    if sizes is None:
        sizes = EvalSizes(data.buckets, data.short_side, data.max_long_side)
    return loader.eval_batches(
        dataset,
        buckets=sizes.buckets,
        short_side=sizes.short_side,
        max_long_side=sizes.max_long_side,
        batch_size=config.eval.batch_size,
        max_boxes=data.max_boxes,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def join(config: Recipe) -> None:
    """Joins the job's processes, once; comes before anything that asks for devices or their number.

    Raises:
      UserError: the address is not complete.
      RuntimeError: the processes did not meet.
    """
    run = config.run
    parallel.initialize(
        mode=run.distributed,
        coordinator=run.coordinator,
        num_processes=run.num_processes,
        process_id=run.process_id,
        timeout=run.init_timeout,
    )


def make_mesh(config: Recipe) -> Mesh:
    """The mesh over all devices of the job, whose processes must have the same recipe and software.

    Raises:
      ValueError: the batch of an evaluation does not divide over the devices.
    """
    join(config)
    if jax.process_count() > 1:
        common = dataclasses.replace(config, run=dataclasses.replace(config.run, process_id=0))
        peers.check_same(
            {
                "the configuration": recipe_io.recipe_to_json(common),
                "the software": peers.code_and_versions(),
            }
        )
    mesh = parallel.make_mesh()
    parallel.check_batch(config.eval.batch_size, mesh)
    return mesh
