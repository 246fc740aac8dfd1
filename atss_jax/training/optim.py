"""Learning-rate schedule, parameter groups and the optimizer.

The official rules: SGD with momentum 0.9, weight decay 1e-4, constant warm-up
at 1/3 for 500 iterations, x0.1 at fixed steps; every parameter whose name contains "bias" learns
twice as fast and without weight decay. Frozen parameters get no update and no optimizer state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from atss_jax.typing import Array, Float, Int

Params = Any
"""A nested dict of arrays."""

Schedule = Callable[[Any], Any]
"""Step (int scalar), counted from 0, -> learning rate of weights (float scalar)."""


def scaled_learning_rate(
    base: float, *, global_batch: int, reference_batch: int, scaling: str
) -> float:
    """The learning rate for a global batch other than the recipe's.

    Args:
      base: learning rate that the recipe states for `reference_batch` images.
      global_batch: images a step of this run, over all devices and accumulated micro-batches.
      reference_batch: images a step in the recipe (the paper's 16).
      scaling: "linear" (Goyal et al. 2017), "none" (keep `base`), or "refuse" (raise unless equal).

    Raises:
      ValueError: unknown scaling, or "refuse" with another batch.
    """
    if scaling == "linear":
        return base * global_batch / reference_batch
    if scaling == "none" or (scaling == "refuse" and global_batch == reference_batch):
        return base
    if scaling == "refuse":
        raise ValueError(
            f"global batch {global_batch}, but the recipe's learning rate {base} is for "
            f"{reference_batch} images a step. Set data.global_batch={reference_batch} (with "
            'optim.accumulate where memory is short), or optim.lr_scaling="linear".'
        )
    raise ValueError(f'optim.lr_scaling={scaling!r}: use "linear", "none" or "refuse".')


def make_schedule(
    *,
    learning_rate: float,
    kind: str,
    num_steps: int,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_steps: int = 500,
    warmup_factor: float = 1 / 3,
    warmup: str = "constant",
) -> Schedule:
    """Learning rate as a function of the step (counted from 0).

    Args:
      learning_rate: rate after the warm-up.
      kind: "steps" (times `decay_factor` at each of `decay_steps`) or "cosine" (to 0 at
        `num_steps`).
      num_steps: steps of the run.
      decay_steps: steps at which "steps" decays.
      decay_factor: factor of each decay.
      warmup_steps: length of the warm-up.
      warmup_factor: factor on the rate in the warm-up (its first step for "linear").
      warmup: "constant" (official ATSS) or "linear".

    Raises:
      ValueError: unknown kind or warm-up, decay steps that are not rising.
    """
    if kind not in ("steps", "cosine"):
        raise ValueError(f'optim.schedule={kind!r}: use "steps" or "cosine".')
    if warmup not in ("constant", "linear"):
        raise ValueError(f'optim.warmup={warmup!r}: use "constant" or "linear".')
    if list(decay_steps) != sorted(set(decay_steps)):
        raise ValueError(f"optim.decay_steps={tuple(decay_steps)}: must rise.")

    def schedule(step):
        step = jnp.asarray(step)
        progress = step / max(warmup_steps, 1)
        ramp = 0.0 if warmup == "constant" else progress
        warm = jnp.where(step < warmup_steps, warmup_factor * (1 - ramp) + ramp, 1.0)
        if kind == "cosine":
            done = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
            decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        else:
            passed = sum((step >= boundary).astype(jnp.int32) for boundary in decay_steps)
            decay = decay_factor ** jnp.asarray(passed)
        return learning_rate * warm * decay

    return schedule


def is_bias(path: tuple[Any, ...]) -> bool:
    """True for the parameters that the official rule calls biases (GroupNorm's too)."""
    return "bias" in str(getattr(path[-1], "key", path[-1]))


def make_optimizer(
    params: Params,
    frozen: Params,
    *,
    name: str,
    schedule: Schedule,
    weight_decay: float,
    momentum: float = 0.9,
    bias_lr_factor: float = 2.0,
    bias_weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """The optimizer over a tree of parameters.

    "sgd" is PyTorch's: v = momentum v + (g + wd w); w -= lr v. "adamw" decouples the decay.

    Args:
      params: parameters, for their names only.
      frozen: tree of bool like `params`; True gets no update.
      name: "sgd" or "adamw".
      schedule: learning rate of weights.
      weight_decay: of weights (GroupNorm scales included).
      momentum: of SGD.
      bias_lr_factor: learning rate of biases over that of weights.
      bias_weight_decay: of biases.
      clip_norm: limit of the global gradient norm over trained parameters, None for none.

    Raises:
      ValueError: unknown name.
    """
    bias = jax.tree_util.tree_map_with_path(lambda path, _: is_bias(path), params)
    decay = jax.tree.map(lambda b: bias_weight_decay if b else weight_decay, bias)
    rate = jax.tree.map(lambda b: bias_lr_factor if b else 1.0, bias)
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm is not None else []
    learning_rate = optax.scale_by_learning_rate(schedule)
    if name == "sgd":
        steps = [*clip, _add_decay(decay), optax.trace(momentum)]
    elif name == "adamw":
        steps = [*clip, optax.scale_by_adam(), _add_decay(decay)]
    else:
        raise ValueError(f'optim.name={name!r}: use "sgd" or "adamw".')
    trained = optax.chain(*steps, _scale_leaves(rate), learning_rate)
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


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


def _zip_map(function, constants: Params, *trees: Params) -> Params:
    """`jax.tree.map` that passes masked (frozen) leaves of `trees` through."""

    def leaf(constant, first, *others):
        if isinstance(first, optax.MaskedNode):
            return first
        return function(constant, first, *others)

    return jax.tree.map(leaf, constants, *trees)


def global_norm(gradients: Params, frozen: Params) -> Float[Array, ""]:
    """L2 norm of the gradients of the trained parameters."""
    squares = jax.tree.map(lambda g, f: 0.0 if f else jnp.sum(jnp.square(g)), gradients, frozen)
    return jnp.sqrt(jnp.asarray(sum(jax.tree.leaves(squares))))


def update_ema(ema: Params, params: Params, *, decay: float, step: Int[Array, ""]) -> Params:
    """Exponential moving average of parameters after update number `step` + 1.

    The decay rises as (1 + step) / (10 + step) to its limit, so that the first steps of a run do
    not linger in the average.
    """
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: (e * rate + p * (1 - rate)).astype(p.dtype), ema, params)
