"""The data plan and the sums that grow with the number of processes, without any of them.

    python scripts/scale_simulation.py --processes 256 1024

Builds the plan of COCO's size (117,266 images with objects, sizes drawn at random) with so many
images per step, and times what one process does for each of its steps, and for a start in the
middle of the run. Bytes of the evaluation's gather, and of the checkpoints of the ResNet-50 recipe,
follow from shapes. Nothing is trained.
"""

import argparse
import json
import math
import time
from typing import Any

import numpy as np

from peak_memory import peak_memory_mib

COCO_TRAIN_IMAGES = 117_266
COCO_VAL_IMAGES = 5_000
COCO_CLASSES = 80
BYTES_PER_DETECTION = 4 * 4 + 4 + 4 + 1
"""Box and score in float32, label in int32, validity."""
BYTES_PER_IMAGE = 4 + 2 * 4
"""Index of the record and two scales."""


def simulate(processes: int, per_process: int, *, steps: int, images: int) -> dict[str, Any]:
    """Figures of one process among so many.

    Args:
      processes: of the job.
      per_process: images per step of each.
      steps: of the plan that are timed.
      images: of the training set.
    """
    from atss_jax.data.batch_plan import BatchPlan
    from atss_jax.run.recipe import Recipe

    config = Recipe()

    def plan_of(global_batch: int, sizes: np.ndarray) -> BatchPlan:
        return BatchPlan(
            sizes,
            buckets=config.data.buckets,
            global_batch=global_batch,
            seed=0,
            short_sides=(config.data.short_side,),
            max_long_side=config.data.max_long_side,
        )

    rng = np.random.default_rng(0)
    sides = rng.integers(400, 641, images)  # COCO: the longer side has 640 px
    sizes = np.stack([sides, np.full(images, 640)], axis=1)
    sizes = np.where(rng.random(images)[:, None] < 0.3, sizes[:, ::-1], sizes)
    before, started = peak_memory_mib(), time.process_time()
    plan = plan_of(processes * per_process, sizes)
    build_seconds = time.process_time() - started
    rows = slice((processes - 1) * per_process, processes * per_process)
    plan.step(0)  # draws the first permutations
    started = time.process_time()
    for step in range(steps):
        plan.step(step).rows(rows)
    step_ms = 1e3 * (time.process_time() - started) / steps
    plan_mib = max(peak_memory_mib() - before, 0.0)
    started = time.process_time()  # what a start does that goes on in the middle of the run
    resumed = plan_of(processes * per_process, sizes)
    resumed.fingerprint()
    images_seen = config.optim.num_steps * config.optim.reference_batch // 2
    resumed.step(images_seen // resumed.global_batch)
    restart_seconds = time.process_time() - started
    detections = config.eval.max_detections
    rows_of_one = math.ceil(COCO_VAL_IMAGES / processes)
    mib_of_one = rows_of_one * (detections * BYTES_PER_DETECTION + BYTES_PER_IMAGE) / 2**20
    return {
        "processes": processes,
        "global_batch": processes * per_process,
        "steps_per_epoch": plan.steps_per_epoch,
        "plan_build_s": build_seconds,
        "plan_step_ms": step_ms,
        "restart_plan_s": restart_seconds,
        "plan_mib": plan_mib,
        "gather_mib": processes * mib_of_one,
        "gather_mib_of_one": mib_of_one,
    }


def checkpoint_sizes(processes: int, chips: int, *, fsdp: bool) -> dict[str, float]:
    """MiB of a checkpoint that one process writes and reads.

    Orbax lets all devices that hold the same array write a slice each, where an axis divides by
    their number; else the first of them, in process 0, writes it whole. When reading, every process
    gets what its devices hold.

    Args:
      processes: of the job.
      chips: of each process.
      fsdp: whether the recipe shards the state.
    """
    import jax
    from jax.sharding import AbstractMesh

    from atss_jax.models.detector import init_variables
    from atss_jax.run.recipe import Recipe
    from atss_jax.run.training_setup import step_settings
    from atss_jax.runtime import parallel
    from atss_jax.training import train_step

    config = Recipe()
    settings = step_settings(config, COCO_CLASSES, config.optim.num_steps)
    variables = jax.eval_shape(lambda: init_variables(settings.model, config.data.buckets[0], 0))
    state = jax.eval_shape(lambda v: train_step.init_state(settings, v), variables)
    devices = processes * chips
    mesh = AbstractMesh((devices,), (parallel.AXIS,))
    shardings = parallel.state_shardings(state, mesh, fsdp=fsdp)
    total = first = other = read = 0.0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        mib = math.prod(leaf.shape) * leaf.dtype.itemsize / 2**20
        is_split = sharding.shard_shape(leaf.shape) != leaf.shape
        is_shared = is_split or any(side % devices == 0 for side in leaf.shape)
        total += mib
        first += mib / processes if is_shared else mib
        other += mib / processes if is_shared else 0.0
        read += mib / processes if is_split else mib
    return {
        "total_mib": total,
        "first_process_writes_mib": first,
        "other_process_writes_mib": other if processes > 1 else 0.0,
        "process_reads_mib": read,
        "all_processes_read_gib": read * processes / 2**10,
    }


def main() -> None:
    """Reads the command line; prints a line of JSON for each number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--per-process", type=int, default=32, help="images: 4 chips x 8")
    parser.add_argument("--chips", type=int, default=4, help="of a process, for checkpoints")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=COCO_TRAIN_IMAGES)
    options = parser.parse_args()
    numbers = (options.per_process, options.chips, options.steps, options.images)
    if min(*options.processes, *numbers) < 1:
        parser.error("all numbers must be 1 or more")
    for processes in options.processes:
        found = simulate(processes, options.per_process, steps=options.steps, images=options.images)
        for name, fsdp in (("replicated", False), ("fsdp", True)):
            found[f"checkpoint_{name}"] = checkpoint_sizes(processes, options.chips, fsdp=fsdp)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
