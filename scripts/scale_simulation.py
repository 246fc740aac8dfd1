"""The data plan and the sums that grow with the number of processes, without any of them.

    python scripts/scale_simulation.py --processes 256 1024

Builds the plan of COCO's size (117,266 images with objects, sizes drawn at random) with so many
images per step, and times what one process does for each of its steps. Bytes of the evaluation's
gather follow from shapes. Nothing is trained, and no network is used.
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
    rng = np.random.default_rng(0)
    sides = rng.integers(400, 641, images)  # COCO: the longer side has 640 px
    sizes = np.stack([sides, np.full(images, 640)], axis=1)
    sizes = np.where(rng.random(images)[:, None] < 0.3, sizes[:, ::-1], sizes)
    before, started = peak_memory_mib(), time.process_time()
    plan = BatchPlan(
        sizes,
        buckets=config.data.buckets,
        global_batch=processes * per_process,
        seed=0,
        short_sides=(config.data.short_side,),
        max_long_side=config.data.max_long_side,
    )
    build_seconds = time.process_time() - started
    rows = slice((processes - 1) * per_process, processes * per_process)
    plan.step(0)  # draws the first permutations
    started = time.process_time()
    for step in range(steps):
        plan.step(step).rows(rows)
    detections = config.eval.max_detections
    rows_of_one = math.ceil(COCO_VAL_IMAGES / processes)
    mib_of_one = rows_of_one * (detections * BYTES_PER_DETECTION + BYTES_PER_IMAGE) / 2**20
    return {
        "processes": processes,
        "global_batch": processes * per_process,
        "steps_per_epoch": plan.steps_per_epoch,
        "plan_build_s": build_seconds,
        "plan_step_ms": 1e3 * (time.process_time() - started) / steps,
        "plan_mib": max(peak_memory_mib() - before, 0.0),
        "gather_mib": processes * mib_of_one,
        "gather_mib_of_one": mib_of_one,
    }


def main() -> None:
    """Reads the command line; prints a line of JSON for each number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--per-process", type=int, default=32, help="images: 4 chips x 8")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=COCO_TRAIN_IMAGES)
    options = parser.parse_args()
    if min([*options.processes, options.per_process, options.steps, options.images]) < 1:
        parser.error("all numbers must be 1 or more")
    for processes in options.processes:
        found = simulate(processes, options.per_process, steps=options.steps, images=options.images)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
