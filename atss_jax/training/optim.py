"""Learning-rate schedule, parameter groups and the optimizer.

The official rules: SGD with momentum 0.9, weight decay 1e-4, constant warm-up
at 1/3 for 500 iterations, x0.1 at fixed steps; every parameter whose name contains "bias" learns
twice as fast and without weight decay. Frozen parameters get no update and no optimizer state.
"""

import difflib
import inspect
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from atss_jax.errors import UserError
from atss_jax.training.config import OptimConfig
from atss_jax.typing import Array, Float, Int

Params = Any
"""A nested dict of arrays."""

OFFICIAL = ("sgd", "adamw")
"""Optimizers whose rules are written here; the others are optax's functions."""

Schedule = Callable[[Any], Any]
"""Step (int scalar), counted from 0, -> learning rate of weights (float scalar)."""


def scaled_learning_rate(
    base: float, *, global_batch: int, reference_batch: int, scaling: str
) -> float:
    """The learning rate for a global batch other than the recipe's.

    Args:
      base: learning rate that the recipe states for `reference_batch` images.
      global_batch: images per step of this run, over all devices and accumulated micro-batches.
      reference_batch: images per step in the recipe (the paper's 16).
      scaling: "linear" (Goyal et al. 2017), "none" (keep `base`), or "refuse" (raise unless equal).

    Raises:
      UserError: unknown scaling, or "refuse" with another batch.
    """
    if scaling == "linear":
        return base * global_batch / reference_batch
    if scaling == "none" or (scaling == "refuse" and global_batch == reference_batch):
        return base
    if scaling == "refuse":
        raise UserError(
            f"global batch {global_batch}, but the recipe's learning rate {base} is for "
            f"{reference_batch} images per step. Set data.global_batch={reference_batch} (with "
            'optim.accumulate where memory is short), or optim.lr_scaling="linear".'
        )
    raise UserError(f'optim.lr_scaling={scaling!r}: use "linear", "none" or "refuse".')


def num_steps(config: OptimConfig, steps_per_epoch: float) -> int:
    """Updates of a run, whichever of `num_steps` and `num_epochs` gives its length."""
    return config.num_steps or max(1, round(config.num_epochs * steps_per_epoch))


def make_schedule(config: OptimConfig, global_batch: int, num_steps: int) -> Schedule:
    """Learning rate as a function of the step (counted from 0), scaled to the global batch.

    Args:
      config: group "optim".
      global_batch: images per step, over all devices and accumulated micro-batches.
      num_steps: steps of the run; decays are placed on it, and warm-up takes at most half of it.

    Raises:
      UserError: another global batch than `reference_batch` where `lr_scaling` refuses it.
    """
    learning_rate = scaled_learning_rate(
        config.learning_rate,
        global_batch=global_batch,
        reference_batch=config.reference_batch,
        scaling=config.lr_scaling,
    )
    decay_steps = [round(fraction * num_steps) for fraction in config.decay_at]
    warmup_steps = min(config.warmup_steps, num_steps // 2)

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step)
        progress = step / max(warmup_steps, 1)
        ramp = 0.0 if config.warmup == "constant" else progress
        warm = jnp.where(step < warmup_steps, config.warmup_factor * (1 - ramp) + ramp, 1.0)
        if config.schedule == "cosine":
            done = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
            decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        else:
            passed = sum((step >= boundary).astype(jnp.int32) for boundary in decay_steps)
            decay = config.decay_factor ** jnp.asarray(passed)
        return learning_rate * warm * decay

    return schedule


def is_bias(path: tuple[Any, ...]) -> bool:
    """True for the parameters that the official rule calls biases (GroupNorm's too)."""
    return "bias" in str(getattr(path[-1], "key", path[-1]))


def is_norm_scale(path: tuple[Any, ...]) -> bool:
    """True for the scales of normalisation layers."""
    return str(getattr(path[-1], "key", path[-1])) == "scale"


def decay_of(path: tuple[Any, ...], config: OptimConfig) -> float:
    """The weight decay of a parameter."""
    if is_bias(path):
        return config.bias_weight_decay
    return config.weight_decay if config.decay_norms or not is_norm_scale(path) else 0.0


def make_optimizer(
    params: Params, frozen: Params, config: OptimConfig, schedule: Schedule
) -> optax.GradientTransformation:
    """The optimizer over a tree of parameters.

    "sgd" is PyTorch's: v = momentum v + (g + wd w); w -= lr v. "adamw" decouples the decay. Any
    other name is optax's function of that name with its own defaults, once for weights and once
    for biases: each has its own rate, and its own decay as the argument `weight_decay`, or added
    to the gradient where the function has no such argument.

    The rate is `schedule` of the optimizer's own count, which `at_step` sets.

    Args:
      params: parameters or their shapes.
      frozen: tree of bool like `params`; True gets no update.
      config: group "optim".
      schedule: learning rate of weights.

    Raises:
      UserError: optax has no such optimizer, or it needs more than gradients and a schedule.
    """
    if config.name in OFFICIAL:
        return _build(params, frozen, config, schedule)
    try:
        optimizer = _build(params, frozen, config, schedule)
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    except UserError:
        raise
    except Exception as error:  # each function of optax fails in its own way
        raise UserError(
            f"config.optim.name={config.name!r}: this optimizer of optax needs more than gradients "
            f"and a schedule ({type(error).__name__}: {error}). Use another one."
        ) from error
    return optimizer


def _build(
    params: Params, frozen: Params, config: OptimConfig, schedule: Schedule
) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name in OFFICIAL:
        bias = jax.tree_util.tree_map_with_path(lambda path, _: is_bias(path), params)
        decay = jax.tree_util.tree_map_with_path(lambda path, _: decay_of(path, config), params)
        rate = jax.tree.map(lambda b: config.bias_lr_factor if b else 1.0, bias)
        if config.name == "sgd":
            steps = [_add_decay(decay), optax.trace(config.momentum)]
        else:
            steps = [optax.scale_by_adam(b1=config.momentum), _add_decay(decay)]
        steps += [_scale_leaves(rate), optax.scale_by_learning_rate(schedule)]
    else:
        steps = [named_optimizer(config, schedule)]
    trained = optax.chain(*clip, *steps)
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def named_optimizer(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """An optimizer of optax by its name, once for weights and once for biases.

    Raises:
      UserError: optax has no such optimizer; the nearest name is given.
    """
    known = _optax_optimizers()
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"config.optim.name={config.name!r}: optax has no such optimizer. Did you mean "
            f"{near!r}? Use one of {', '.join(known)}."
        )
    function = getattr(optax, config.name)

    def of_group(factor: float, decay: float) -> optax.GradientTransformation:
        def rate(step: Any) -> Any:
            return factor * schedule(step)

        if "weight_decay" in inspect.signature(function).parameters:
            return function(rate, weight_decay=decay)
        return optax.chain(optax.add_decayed_weights(decay), function(rate))

    groups: dict[Hashable, optax.GradientTransformation] = {
        "weight": of_group(1.0, config.weight_decay),
        "bias": of_group(config.bias_lr_factor, config.bias_weight_decay),
    }
    if not config.decay_norms:
        groups["norm"] = of_group(1.0, 0.0)

    def group_of(path: tuple[Any, ...], _: Any) -> str:
        if is_bias(path):
            return "bias"
        return "norm" if is_norm_scale(path) and "norm" in groups else "weight"

    return optax.partition(
        groups, lambda params: jax.tree_util.tree_map_with_path(group_of, params)
    )


def _optax_optimizers() -> list[str]:
    """Names of optax's functions that need nothing but a learning rate."""
    names = []
    for name, function in vars(optax).items():
        if not inspect.isfunction(function) or name.startswith("scale_by"):
            continue
        first, *others = inspect.signature(function).parameters.values() or (None,)
        optional = all(p.default is not inspect.Parameter.empty for p in others)
        if first is not None and first.name == "learning_rate" and optional:
            names.append(name)
    return sorted(names)


def at_step(opt_state: Any, step: Int[Array, ""]) -> Any:
    """The optimizer's state with the count that its schedule reads set to `step`.

    A skipped update restores the state, its count too; the run's step goes on. Other counts, such
    as Adam's for its bias correction, stay: they count updates.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda node: node._replace(count=step) if is_schedule(node) else node,
        opt_state,
        is_leaf=is_schedule,
    )


# Not `optax.masked`, which would add nodes to the state and make older checkpoints unreadable.


def _add_decay(decay: Params) -> optax.GradientTransformation:
    """Adds `decay * parameter` to each update; frozen leaves are `optax.MaskedNode`s."""

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return _zip_map(lambda d, u, p: u + d * p if d else u, decay, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_leaves(factors: Params) -> optax.GradientTransformation:
    """Multiplies each update by its own constant."""

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return _zip_map(lambda f, u: u if f == 1.0 else u * f, factors, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _zip_map(function: Callable[..., Array], constants: Params, *trees: Params) -> Params:
    """`jax.tree.map` that passes masked (frozen) leaves of `trees` through."""

    def leaf(constant: Any, first: Any, *others: Any) -> Any:
        if isinstance(first, optax.MaskedNode):
            return first
        return function(constant, first, *others)

    return jax.tree.map(leaf, constants, *trees)


def global_norm(gradients: Params, frozen: Params) -> Float[Array, ""]:
    """L2 norm of the gradients of the trained parameters."""
    squares = jax.tree.map(lambda g, f: 0.0 if f else jnp.sum(jnp.square(g)), gradients, frozen)
    return jnp.sqrt(jnp.asarray(sum(jax.tree.leaves(squares))))


def update_ema(average: Params, values: Params, *, decay: float, step: Int[Array, ""]) -> Params:
    """Exponential moving average of any tree after update number `step` + 1.

    The decay rises as (1 + step) / (10 + step) to its limit, so that the first steps of a run do
    not linger in the average.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(values, average, 1 - kept)
