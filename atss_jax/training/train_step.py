"""One update: batch -> outputs, targets -> losses -> gradients -> state. The spine of training.

Everything is in the global view: under `jit` with sharded batches, a sum over the batch is a sum
over all devices, so the losses are normalised over the whole global batch by construction.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from atss_jax.assigners.registry import Assigner, needs_predictions
from atss_jax.geometry.anchors import make_grid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.models.detector import DetectorNetwork, normalize_images
from atss_jax.models.normalization import Normalization
from atss_jax.runtime import parallel, precision
from atss_jax.structures import Batch, HeadOutputs, Losses, Predictions, Targets
from atss_jax.training import optim
from atss_jax.training.loss_counts import Normalizers, count_normalizers
from atss_jax.training.losses import LossSettings
from atss_jax.training.targets import assign_targets, predictions_of
from atss_jax.typing import Array, Int

Tree = TypeVar("Tree")
"""Any nesting of arrays."""


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
    ema_batch_stats: Any = None
    """Moving average of `batch_stats` beside `ema_params` where batch norm is trained, or None."""


StepMetrics = OrderedDict[str, Array]
"""What a step reports: scalars of the global batch, before its update, by their names in the logs.
"is_finite" is False where the update was skipped. JAX sorts the keys of a plain dict."""


class StepSettings(NamedTuple):
    """The constants of a step."""

    model: DetectorNetwork
    anchors: AnchorConfig
    """Each batch brings the image shape of its grid."""
    assign: Assigner
    """One image: (grid, image_size, gt) -> Assignment, or (grid, image_size, gt, predictions)."""
    optimizer: optax.GradientTransformation
    schedule: optim.Schedule
    frozen: Any
    """Tree of bool like the parameters."""
    normalization: Normalization
    loss: LossSettings
    accumulate: int = 1
    """Micro-batches per step."""
    ema_decay: float = 0.0
    """0 for no moving average."""
    warmup_assign: Assigner | None = None
    """Of one image, (grid, image_size, gt) -> Assignment, in the first `warmup_steps` steps, where
    `assign` looks at predictions; None for `assign` from the start."""
    warmup_steps: int = 0


def init_state(settings: StepSettings, variables: Any) -> TrainState:
    """The state before the first step.

    Args:
      settings: constants of the step.
      variables: the model's {"params": ..., "batch_stats": ...}.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Frozen statistics are constants: their average would only add rounding.
    has_statistics = settings.ema_decay and settings.model.config.backbone_norm == "batch_norm"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=settings.optimizer.init(params),
        ema_params=jax.tree.map(jnp.array, params) if settings.ema_decay else None,
        ema_batch_stats=jax.tree.map(jnp.array, batch_stats) if has_statistics else None,
    )


def state_dict(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint holds it, for `TrainState(**...)`.

    Without `ema_batch_stats` where there is none: runs from before the field have no such entry.
    """
    fields = state._asdict()
    if state.ema_batch_stats is None:
        del fields["ema_batch_stats"]
    return fields


def eval_variables(state: TrainState) -> dict[str, Any]:
    """The variables to evaluate: the averages where there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    statistics = state.batch_stats if state.ema_batch_stats is None else state.ema_batch_stats
    return {"params": params, "batch_stats": statistics}


def make_train_step(
    settings: StepSettings, mesh: Mesh, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted update; the state's buffers are donated.

    Args:
      settings: constants of the step.
      mesh: the devices.
      shardings: of the state.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with precision.of_network(settings.model.compute_dtype, parallel.platform_of(mesh)):
            return train_step(settings, mesh, state, batch, shardings.params)

    return jax.jit(
        step,
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=(shardings, parallel.replicated(mesh)),
        donate_argnums=0,
    )


def train_step(
    settings: StepSettings,
    mesh: Mesh | None,
    state: TrainState,
    batch: Batch,
    shardings: Any = None,
) -> tuple[TrainState, StepMetrics]:
    """One update, to be jitted.

    A non-finite loss or gradient leaves the state as it was, but for the step count.

    An assigner that looks at predictions is called inside the loss function. With micro-batches the
    counts of the whole batch must be known before any of their losses, so the network then runs
    forward once more to get the targets, or the predicted weights of box losses. The alternative,
    gradients of the unnormalised sums apart from each other, takes more backward passes, each
    more expensive than one forward pass.

    Args:
      settings: constants of the step.
      mesh: the devices, or None for one device without sharding.
      state: before the update.
      batch: the global batch; a multiple of `settings.accumulate` images.
      shardings: of the parameters; None where no array is split over the devices.
    """
    _, height, width, _ = batch.image.shape
    grid = make_grid(settings.anchors, (height, width))
    is_static = not needs_predictions(settings.assign)
    count = settings.accumulate

    def assign_by(
        assign_image: Assigner, batch: Batch, predictions: Predictions | None = None
    ) -> Targets:
        return assign_targets(
            assign_image,
            grid,
            batch.image_size,
            batch.ground_truth,
            predictions=predictions,
            mesh=mesh,
        )

    def assign(batch: Batch, outputs: HeadOutputs | None = None) -> Targets:
        if outputs is None:
            return assign_by(settings.assign, batch)
        predictions = predictions_of(outputs, grid, regression=settings.loss.regression)
        warmup_assign = settings.warmup_assign
        if warmup_assign is None:
            return assign_by(settings.assign, batch, predictions)
        return jax.lax.cond(
            state.step < settings.warmup_steps,
            lambda: assign_by(warmup_assign, batch),
            lambda: assign_by(settings.assign, batch, predictions),
        )

    def loss_fn(
        params: Any,
        batch_stats: Any,
        batch: Batch,
        targets: Targets | None,
        norms: Normalizers | None,
    ) -> tuple[Array, tuple[Losses, Any]]:
        params = parallel.gather(params, shardings, settings.model.compute_dtype)
        outputs, batch_stats = _forward(settings, params, batch_stats, batch)
        if targets is None:
            targets = assign(batch, outputs)
        losses = settings.loss(outputs, targets, grid, norms)
        return losses.total, (losses, batch_stats)

    def look_ahead(batch: Batch) -> tuple[Targets, Normalizers]:
        params = parallel.gather(state.params, shardings, settings.model.compute_dtype)
        outputs, _ = _forward(settings, params, state.batch_stats, batch)
        targets = assign(batch, None if is_static else outputs)
        return targets, settings.loss.count(outputs, targets, grid)

    targets = norms = None
    if count > 1 and not (is_static and settings.loss.has_fixed_counts):
        targets, parts = jax.lax.map(look_ahead, _split(batch, count))
        targets, norms = _join(targets), jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)
    elif is_static:
        targets = assign(batch)
        if settings.loss.has_fixed_counts:
            norms = count_normalizers(targets)

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if count == 1:
        gradients, (losses, batch_stats) = gradient_fn(
            state.params, state.batch_stats, batch, targets, norms
        )
    else:
        assert norms is not None  # counted above wherever there are micro-batches
        gradients, losses, batch_stats = _accumulate(
            gradient_fn, state, _split((batch, targets), count), norms
        )
    if shardings is not None:
        gradients = jax.tree.map(jax.lax.with_sharding_constraint, gradients, shardings)
    return update_state(settings, state, gradients, losses, batch_stats)


def _forward(
    settings: StepSettings, params: Any, batch_stats: Any, batch: Batch
) -> tuple[HeadOutputs, Any]:
    """(outputs, new statistics) of a batch in training."""
    images = normalize_images(batch.image, batch.image_size, **settings.normalization._asdict())
    outputs, updates = settings.model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        batch.image_size,
        train=True,
        mutable=["batch_stats"],
    )
    return outputs, updates.get("batch_stats", batch_stats)


def _split(inputs: Tree, count: int) -> Tree:
    """Micro-batches along a new first axis: image i goes to micro-batch i % count.

    Each device so keeps its own images.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), inputs
    )


def _join(inputs: Tree) -> Tree:
    """Inverse of `_split`."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), inputs)


def _accumulate(
    gradient_fn: Callable[..., Any],
    state: TrainState,
    micro_batches: tuple[Batch, Targets | None],
    norms: Normalizers,
) -> tuple[Any, Losses, Any]:
    """Sums gradients and losses over micro-batches.

    The losses are normalised over the whole batch, so the sums are the whole batch's.
    """

    def add(x: Tree, y: Tree) -> Tree:
        return jax.tree.map(jnp.add, x, y)

    def body(
        carry: tuple[Any, Any, Losses], inputs: tuple[Batch, Targets | None]
    ) -> tuple[tuple[Any, Any, Losses], None]:
        batch_stats, gradients, losses = carry
        new_gradients, (new_losses, batch_stats) = gradient_fn(
            state.params, batch_stats, *inputs, norms
        )
        return (batch_stats, add(gradients, new_gradients), add(losses, new_losses)), None

    zeros = Losses(*(jnp.zeros(()) for _ in Losses._fields))
    start = (state.batch_stats, jax.tree.map(jnp.zeros_like, state.params), zeros)
    (batch_stats, gradients, losses), _ = jax.lax.scan(body, start, micro_batches)
    return gradients, losses._replace(num_positives=norms.num_positives), batch_stats


def update_state(
    settings: StepSettings, state: TrainState, gradients: Any, losses: Losses, batch_stats: Any
) -> tuple[TrainState, StepMetrics]:
    """The new state and the metrics of the old one.

    Args:
      settings: constants of the step.
      state: before the update.
      gradients: like its parameters.
      losses: of the global batch.
      batch_stats: the new statistics.
    """
    grad_norm = optim.global_norm(gradients, settings.frozen)
    is_finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
    updates, opt_state = settings.optimizer.update(
        gradients, optim.at_step(state.opt_state, state.step), state.params
    )
    params = optax.apply_updates(state.params, updates)

    def average(old: Any, new: Any) -> Any:
        if old is None:
            return None
        return optim.update_ema(old, new, decay=settings.ema_decay, step=state.step)

    new = TrainState(
        state.step,
        params,
        batch_stats,
        opt_state,
        average(state.ema_params, params),
        average(state.ema_batch_stats, batch_stats),
    )
    new = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
    metrics = OrderedDict(
        loss=losses.total,
        loss_cls=losses.cls,
        loss_box=losses.box,
        loss_centerness=losses.centerness,
        num_positives=losses.num_positives,
        grad_norm=grad_norm,
        learning_rate=settings.schedule(state.step),
        is_finite=is_finite,
    )
    return new._replace(step=state.step + 1), metrics
