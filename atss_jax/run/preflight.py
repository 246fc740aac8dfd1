"""Everything that a run needs is tried before its workdir is claimed.

A wrong weight file, an image too large for all buckets or a missing package is an error after
seconds then, not at the first evaluation, and leaves no half-made workdir behind.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atss_jax.data import loader
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import coco_metrics
from atss_jax.run import build
from atss_jax.run.recipe import Recipe
from atss_jax.run.training_setup import Setup
from atss_jax.run.validation import Validation
from atss_jax.runtime import parallel, tpu_options
from atss_jax.runtime.compiled import CompiledByShape
from atss_jax.runtime.tpu_options import IMAGES_PER_TPU
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState


def compile_step(config: Recipe, setup: Setup) -> CompiledByShape:
    """The training step, compiled for every bucket of the plan."""
    images = _images_per_device(config, setup.mesh)
    step = CompiledByShape(
        train_step.make_train_step(setup.settings, setup.mesh, setup.shardings),
        expected=len(setup.plan.used_buckets),
        options=tpu_options.compiler_options(parallel.platform_of(setup.mesh), images),
    )
    sharding = parallel.batch_sharding(setup.mesh)
    for bucket in setup.plan.used_buckets:
        shapes = loader.batch_shapes(bucket, config.data.global_batch, config.data.max_boxes)
        abstract = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes
        )
        step.program(setup.abstract_state, abstract)
    return step


def tpu_advice(config: Recipe, mesh: Mesh) -> str:
    """What to say of a batch that is small for TPUs; "" where there is nothing to say.

    Args:
      config: the recipe, in numbers.
      mesh: the devices.
    """
    count = config.optim.accumulate
    images = _images_per_device(config, mesh)
    if parallel.platform_of(mesh) != "tpu" or images >= IMAGES_PER_TPU:
        return ""
    parts = f" and micro-batch ({count})" if count > 1 else ""
    return (
        f"{images} image(s) per TPU chip{parts}: with fewer than {IMAGES_PER_TPU} a chip does less "
        f"per second, at 2 a quarter less by the compiler's estimate. config.data.global_batch="
        f"{IMAGES_PER_TPU * mesh.size * count} has {IMAGES_PER_TPU}; see docs/performance.md."
    )


def warmup_advice(config: Recipe, num_steps: int) -> str:
    """What to say of an assigner whose warm-up does not end; "" where it has none, or it ends.

    Args:
      config: the recipe.
      num_steps: length of the run.
    """
    assigner = config.assigner
    if not assigner.warmup_steps or assigner.warmup_steps < num_steps:
        return ""
    return (
        f"config.assigner.warmup_steps={assigner.warmup_steps} in a run of {num_steps} steps: ATSS "
        f"assigns in all of them, {assigner.name} in none. Set it below {num_steps}, such as "
        f"{num_steps // 3} (a third, as in TOOD), or train for longer."
    )


def _images_per_device(config: Recipe, mesh: Mesh) -> int:
    """Of a micro-batch."""
    return config.data.global_batch // (mesh.size * config.optim.accumulate)


def check_sinks(config: Recipe) -> None:
    """Raises UserError when the metrics are to go to a package that is not installed."""
    if config.run.wandb and not importlib.util.find_spec("wandb"):
        raise UserError(
            f"config.run.wandb={config.run.wandb!r}, but wandb is not installed. "
            "pip install 'atss_jax[wandb]', or set config.run.wandb=''."
        )


def check_first_batch(config: Recipe, setup: Setup) -> None:
    """Reads this process' share of the first training batch.

    Raises:
      ValueError: an image of it does not decode.
    """
    loader.batch_at(
        setup.train_set,
        setup.plan,
        0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_boxes=config.data.max_boxes,
        on_overflow=config.data.on_overflow,
    )


def check_val_set(config: Recipe, val: Validation) -> None:
    """Raises ValueError for an image without a bucket, or more boxes than slots."""
    build.eval_batches(config, val.dataset).close()


def check_evaluation(config: Recipe, val: Validation, state: TrainState) -> None:
    """Runs the first validation batch through the network, and one box through the metrics.

    Raises:
      ImportError, ValueError: the metrics' package is missing; an image does not decode.
    """
    if not config.eval.format_only:
        check_metrics(config.eval.backend)
    val.try_first_batch(train_step.eval_variables(state))


def check_metrics(backend: str) -> None:
    """Raises unless the metrics' package works: one object that is found has AP 1.

    Raises:
      RuntimeError: another number.
    """
    truth = {
        "images": [{"id": 1, "height": 40, "width": 40}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400}
            | {"iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.9}]
    metrics = coco_metrics(
        truth, found, class_names=("object",), category_ids=(1,), backend=backend
    )
    if not abs(metrics["AP"] - 1) <= 1e-6:  # NaN neither
        raise RuntimeError(
            f"eval.backend={backend!r} gives AP {metrics['AP']} for a perfect detection: its "
            "installation is broken."
        )


def non_finite_names(state: TrainState) -> list[str]:
    """Names of the parameters and statistics that hold a NaN or an infinity.

    Every process has to call it: the state is spread over all of them.
    """
    parts = {
        name: getattr(state, name)
        for name in ("params", "batch_stats", "ema_params", "ema_batch_stats")
        if getattr(state, name, None) is not None
    }
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    arrays = [leaf for _, leaf in leaves]
    are_finite = np.asarray(_are_finite(arrays))
    return [
        jax.tree_util.keystr(path)
        for (path, _), ok in zip(leaves, are_finite, strict=True)
        if not ok
    ]


@jax.jit
def _are_finite(arrays: list[Any]) -> Any:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])


def check_finite(
    state: TrainState, where: str, error: Callable[[str], Exception] = UserError
) -> None:
    """Raises `error` for a state with numbers that are not finite.

    Args:
      state: of the training.
      where: what holds it, for the message.
      error: kind of the exception.
    """
    names = non_finite_names(state)
    if names:
        raise error(
            f"{where} holds NaN or infinite numbers in {len(names)} arrays: "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
        )
