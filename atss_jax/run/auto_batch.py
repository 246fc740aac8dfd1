"""`data.global_batch=auto`: the largest batch whose training step fits the device's memory.

The compiler's own memory analysis decides: the step is compiled, not run. Needs grow linearly with
the batch, so two small compilations predict the answer; the chosen batch and twice as many images
are then compiled to know that the one fits and that the other does not.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
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
STEPS_PER_EPOCH = 8
"""A set is split into so many batches at least, so that a short schedule has enough steps."""
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        *("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)
"""Where Linux, in its two ways, tells the limit of a container, what is used of it, and how much of
that are copies of files."""
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
    """Bytes of twice as many images, None where those are not tried."""
    limit: int
    """Bytes per device that a step may take."""
    most: str
    """Why not twice as many images, where those are not tried."""

    def __str__(self) -> str:
        """One line for the screen."""
        gib = 2**30
        after = (
            f"{2 * self.global_batch} would take {self.next_needed / gib:.2f}"
            if self.next_needed
            else self.most
        )
        return (
            f"batch {self.global_batch}: {self.needed / gib:.2f} GiB of {self.limit / gib:.2f} "
            f"(compiler's figures); {after}"
        )


def memory_limit() -> int:
    """Bytes that a step may take per device: `SHARE` of the accelerator's, or of the machine's.

    The devices of a CPU share the memory that the machine, or its container, has left.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(SHARE * stats["bytes_limit"])
    return int(SHARE * _memory_left() / jax.local_device_count())


def _memory_left() -> int:
    """Bytes that programs can still take; copies of files give way to them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: half of all
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for folder, limit, used, files in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such group, or no limit
            taken, most = (int(Path(folder, name).read_text()) for name in (used, limit))
            lines = Path(folder, "memory.stat").read_text().splitlines()
            taken -= int(dict(line.split() for line in lines)[files])
            left = min(left, most - taken)
    return max(0, left)


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
    num_images: int | None = None,
    limit: int | None = None,
    measure: Callable[[int], int] | None = None,
) -> BatchChoice:
    """The largest power of two of images per device whose step fits.

    Args:
      config: the recipe.
      num_classes: of the data.
      num_images: to train on; None where the set is no bound.
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
    most, largest = f"the most that is tried, {LARGEST} per device", LARGEST
    if num_images is not None:
        of_set = num_images // (STEPS_PER_EPOCH * jax.device_count())
        if of_set < LARGEST:
            most = f"more would make fewer than {STEPS_PER_EPOCH} steps of {num_images} images"
            largest = of_set
    largest = smallest * 2 ** int(math.log2(max(1, largest // smallest)))
    if needed(smallest) > limit:
        raise UserError(
            f"config.data.global_batch=auto: a step of {smallest} image(s) per device needs "
            f"{needed(smallest) / 2**30:.2f} GiB, more than {limit / 2**30:.2f}. Lower "
            "data.image_size, or set model.remat=blocks."
        )
    slope = max(1.0, (needed(2 * smallest) - needed(smallest)) / smallest)
    predicted = smallest + (limit - needed(smallest)) / slope
    images = smallest * 2 ** max(0, int(math.log2(max(1.0, predicted / smallest))))
    images = min(images, largest)
    while images > smallest and needed(images) > limit:
        images //= 2
    while 2 * images <= largest and needed(2 * images) <= limit:
        images *= 2
    after = needed(2 * images) if 2 * images <= largest else None
    return BatchChoice(images * jax.device_count(), needed(images), after, limit, most)


def with_batch(config: Recipe, global_batch: int) -> Recipe:
    """The recipe with another batch; `optim.lr_scaling` says what the learning rate does then."""
    data = dataclasses.replace(config.data, global_batch=global_batch)
    return dataclasses.replace(config, data=data)
