"""One update: batch -> outputs, targets -> losses -> gradients -> state. The spine of training.

Everything is in the global view: under `jit` with sharded batches, a sum over the batch is a sum
over all devices, so the losses are normalised over the whole global batch by construction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from atss_jax.assigners.registry import needs_predictions
from atss_jax.geometry.anchors import make_grid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.models.detector import Detector, normalize_images
from atss_jax.models.normalization import Normalization
from atss_jax.runtime import parallel
from atss_jax.structures import Batch, Losses
from atss_jax.training import optim
from atss_jax.training.losses import LossSettings, count_normalizers
from atss_jax.training.targets import assign_targets, predictions_of
from atss_jax.typing import Array, Bool, Float, Int


class TrainState(NamedTuple):
    """All that a run carries from step to step. Randomness comes from the data plan alone."""

    step: Int[Array, ""]
    """Updates done, int32."""
    params: Any
    batch_stats: Any
    """Running statistics and frozen affine constants of normalisation layers."""
    opt_state: Any
    ema_params: Any
    """Moving average of `params`, or None."""


class StepMetrics(NamedTuple):
    """What a step reports: scalars of the global batch, before its update."""

    loss: Float[Array, ""]
    loss_cls: Float[Array, ""]
    loss_box: Float[Array, ""]
    loss_centerness: Float[Array, ""]
    num_positives: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    is_finite: Bool[Array, ""]
    """False where the update was skipped."""


class StepSettings(NamedTuple):
    """The constants of a step."""

    model: Detector
    anchors: AnchorConfig
    """Each batch brings the image shape of its grid."""
    assign: Callable
    """(grid, image_size, gt) -> Assignment, one image."""
    optimizer: optax.GradientTransformation
    schedule: optim.Schedule
    frozen: Any
    """Tree of bool like the parameters."""
    normalize: Normalization
    loss: LossSettings
    accumulate: int = 1
    """Micro-batches a step."""
    ema_decay: float = 0.0


def init_state(settings: StepSettings, variables: Any) -> TrainState:
    """The state before the first step.

    Args:
      settings: constants of the step.
      variables: the model's {"params": ..., "batch_stats": ...}.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=settings.optimizer.init(params),
        ema_params=jax.tree.map(jnp.array, params) if settings.ema_decay else None,
    )


def eval_variables(state: TrainState) -> dict[str, Any]:
    """The variables to evaluate: the averaged parameters where there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, "batch_stats": state.batch_stats}


def make_train_step(
    settings: StepSettings, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted update; the state's buffers are donated.

    Args:
      settings: constants of the step.
      mesh: the devices.
      shardings: of the state.
    """
    return jax.jit(
        lambda state, batch: train_step(settings, mesh, state, batch),
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=(shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def train_step(
    settings: StepSettings, mesh: Mesh | None, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """One update, to be jitted.

    A non-finite loss or gradient leaves the state as it was, but for the step count.

    Args:
      settings: constants of the step.
      mesh: the devices, or None for one device without sharding.
      state: before the update.
      batch: the global batch; a multiple of `settings.accumulate` images.
    """
    _, height, width, _ = batch.image.shape
    grid = make_grid(settings.anchors, (height, width))

    def forward(params, batch_stats, batch):
        images = normalize_images(batch.image, batch.image_size, **settings.normalize._asdict())
        return settings.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            batch.image_size,
            train=True,
            mutable=["batch_stats"],
        )

    if needs_predictions(settings.assign):
        # The losses need the positives of the whole batch, so assignment comes before the first
        # micro-batch's loss: a forward pass of its own, on the images that it will train with.
        outputs = _by_micro_batch(
            lambda batch: forward(state.params, state.batch_stats, batch)[0],
            batch,
            settings.accumulate,
        )
        predictions = predictions_of(outputs, grid, settings.loss.regression)
    else:
        predictions = None
    targets = assign_targets(
        settings.assign,
        grid,
        batch.image_size,
        batch.ground_truth,
        predictions=predictions,
        mesh=mesh,
    )
    norms = count_normalizers(targets)

    def loss_fn(params, batch_stats, batch, targets):
        outputs, updates = forward(params, batch_stats, batch)
        losses = settings.loss(outputs, targets, grid, norms)
        return losses.total, (losses, updates.get("batch_stats", batch_stats))

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if settings.accumulate == 1:
        gradients, (losses, batch_stats) = gradient_fn(
            state.params, state.batch_stats, batch, targets
        )
    else:
        gradients, losses, batch_stats = _accumulate(
            gradient_fn, state, (batch, targets), settings.accumulate
        )
    return _update(settings, state, gradients, losses, batch_stats, norms.num_positives)


def _split(tree: Any, count: int) -> Any:
    """Leading B to [count, B / count]: image i goes to micro-batch i % count."""
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), tree
    )


def _by_micro_batch(function: Callable, batch: Batch, count: int) -> Any:
    """`function` of each micro-batch, one after the other, put back in the batch's order."""
    if count == 1:
        return function(batch)
    found = jax.lax.map(function, _split(batch, count))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found)


def _accumulate(gradient_fn, state, inputs, count):
    """Sums gradients and losses over `count` micro-batches.

    The losses are normalised over the whole batch, so the sums are the whole batch's. Image i goes
    to micro-batch i % count: each device keeps its own images.
    """
    micro = _split(inputs, count)

    def body(carry, inputs):
        batch_stats, gradients, losses = carry
        new_gradients, (new_losses, batch_stats) = gradient_fn(state.params, batch_stats, *inputs)
        add = lambda x, y: jax.tree.map(jnp.add, x, y)  # noqa: E731
        return (batch_stats, add(gradients, new_gradients), add(losses, new_losses)), None

    zeros = Losses(*(jnp.zeros(()) for _ in Losses._fields))
    start = (state.batch_stats, jax.tree.map(jnp.zeros_like, state.params), zeros)
    (batch_stats, gradients, losses), _ = jax.lax.scan(body, start, micro)
    return gradients, losses, batch_stats


def _update(settings, state, gradients, losses, batch_stats, num_positives):
    """The new state and the metrics of the old one."""
    grad_norm = optim.global_norm(gradients, settings.frozen)
    is_finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
    updates, opt_state = settings.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = None
    if state.ema_params is not None:
        ema_params = optim.update_ema(
            state.ema_params, params, decay=settings.ema_decay, step=state.step
        )
    new = TrainState(state.step, params, batch_stats, opt_state, ema_params)
    new = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
    metrics = StepMetrics(
        loss=losses.total,
        loss_cls=losses.cls,
        loss_box=losses.box,
        loss_centerness=losses.centerness,
        num_positives=num_positives,
        grad_norm=grad_norm,
        learning_rate=settings.schedule(state.step),
        is_finite=is_finite,
    )
    return new._replace(step=state.step + 1), metrics
