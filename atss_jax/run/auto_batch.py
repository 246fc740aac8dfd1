"""`data.global_batch=auto`: the largest batch whose training step fits the device's memory.

The compiler's own memory analysis decides: the step is compiled, not run. Needs grow linearly with
the batch, so two small compilations predict the answer; the chosen batch and twice as many images
are then compiled to know that the one fits and that the other does not.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax

from atss_jax.data import loader
from atss_jax.errors import UserError
from atss_jax.models.detector import init_variables
from atss_jax.run.recipe import Recipe
from atss_jax.run.training_setup import step_settings
from atss_jax.training import train_step

LARGEST = 64
"""Images per device that are tried at most: larger batches need another schedule."""
SHARE = 0.85
"""Of the device's memory that a step may take; programs of other buckets and buffers of the input
need the rest."""


class BatchChoice(NamedTuple):
    """What was chosen, and why."""

    global_batch: int
    """Images per step over all devices."""
    needed: int
    """Bytes per device of the chosen step, by the compiler."""
    next_needed: int | None
    """Bytes of twice as many images, None where `LARGEST` was reached."""
    limit: int
    """Bytes per device that a step may take."""

    def __str__(self) -> str:
        """One line for the screen."""
        gib = 2**30
        after = (
            f"{2 * self.global_batch} would take {self.next_needed / gib:.2f}"
            if self.next_needed
            else f"the most that is tried, {LARGEST} per device"
        )
        return (
            f"batch {self.global_batch}: {self.needed / gib:.2f} GiB of {self.limit / gib:.2f} "
            f"(compiler's figures); {after}"
        )


def memory_limit() -> int:
    """Bytes that a step may take per device: `SHARE` of the accelerator's, or of the machine's.

    The devices of a CPU share the machine's free memory.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(SHARE * stats["bytes_limit"])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(SHARE * free / jax.local_device_count())


def step_bytes(config: Recipe, num_classes: int, images: int) -> int:
    """Bytes that the compiled training step of one device needs: state, batch, temporaries.

    Args:
      config: the recipe; its largest bucket is compiled.
      num_classes: of the data.
      images: per device.
    """
    largest = max(config.data.buckets, key=math.prod)
    settings = step_settings(with_batch(config, images), num_classes, num_steps=2)
    variables = jax.eval_shape(lambda: init_variables(settings.model, largest, 0))
    state = jax.eval_shape(lambda v: train_step.init_state(settings, v), variables)
    batch = loader.batch_shapes(largest, images, config.data.max_boxes)
    step = jax.jit(lambda s, b: train_step.train_step(settings, None, s, b), donate_argnums=0)
    memory = step.lower(state, batch).compile().memory_analysis()
    if memory is None:
        raise UserError(
            f"config.data.global_batch=auto: the compiler of {jax.default_backend()} does not say "
            "what memory a step needs. Give a number."
        )
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def choose_batch(
    config: Recipe,
    num_classes: int,
    *,
    limit: int | None = None,
    measure: Callable[[int], int] | None = None,
) -> BatchChoice:
    """The largest power of two of images per device whose step fits.

    Args:
      config: the recipe.
      num_classes: of the data.
      limit: bytes per device; None for `memory_limit()`.
      measure: images per device -> bytes; None for `step_bytes`.

    Raises:
      UserError: not even the smallest step fits.
    """
    limit = memory_limit() if limit is None else limit
    known: dict[int, int] = {}

    def needed(images: int) -> int:
        if images not in known:
            known[images] = (
                step_bytes(config, num_classes, images) if measure is None else measure(images)
            )
        return known[images]

    smallest = config.optim.accumulate
    if needed(smallest) > limit:
        raise UserError(
            f"config.data.global_batch=auto: a step of {smallest} image(s) per device needs "
            f"{needed(smallest) / 2**30:.2f} GiB, more than {limit / 2**30:.2f}. Lower "
            "data.image_size, or set model.remat=blocks."
        )
    slope = max(1.0, (needed(2 * smallest) - needed(smallest)) / smallest)
    predicted = smallest + (limit - needed(smallest)) / slope
    images = smallest * 2 ** max(0, int(math.log2(max(1.0, predicted / smallest))))
    images = min(images, _largest(smallest))
    while images > smallest and needed(images) > limit:
        images //= 2
    while 2 * images <= _largest(smallest) and needed(2 * images) <= limit:
        images *= 2
    after = needed(2 * images) if 2 * images <= _largest(smallest) else None
    return BatchChoice(images * jax.device_count(), needed(images), after, limit)


def _largest(smallest: int) -> int:
    """The largest number of images that is a power of two times the smallest."""
    return smallest * 2 ** int(math.log2(max(1, LARGEST // smallest)))


def with_batch(config: Recipe, global_batch: int) -> Recipe:
    """The recipe with another batch; `optim.lr_scaling` says what the learning rate does then."""
    data = dataclasses.replace(config.data, global_batch=global_batch)
    return dataclasses.replace(config, data=data)
