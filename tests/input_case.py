"""One process of a two-process job: reads batches, checks them with the other process, writes them.

Run by test_input_distributed.py: input_case.py COORDINATOR PROCESS_ID FOLDER NUM_WORKERS
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from atss_jax.data import loader
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.coco import load_coco

BUCKETS = ((64, 96), (96, 64))
STEPS = 6


def main(coordinator: str, process_id: int, folder: Path, num_workers: int) -> None:
    """Joins, reads, compares, writes."""
    jax.distributed.initialize(coordinator, num_processes=2, process_id=process_id)
    dataset = load_coco(str(folder / "a.json"), str(folder), name="noise")
    plan = BatchPlan(
        dataset.sizes,
        buckets=BUCKETS,
        global_batch=4,
        seed=3,
        short_sides=(40, 48),
        max_long_side=96,
    )
    digest = np.frombuffer(bytes.fromhex(plan.fingerprint()), np.uint8)
    multihost_utils.assert_equal(digest, "the plans differ")
    with loader.train_batches(
        dataset,
        plan,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=num_workers,
    ) as batches:
        found = [next(batches) for _ in range(STEPS)]
    with loader.eval_batches(
        dataset,
        buckets=BUCKETS,
        short_side=48,
        max_long_side=96,
        batch_size=4,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ) as batches:
        evaluated = list(batches)
    shapes = np.array([batch.image.shape for batch in evaluated])
    multihost_utils.assert_equal(shapes, "evaluation differs in shape")
    arrays: dict[str, Any] = {
        f"image_{n}": np.asarray(batch.image) for n, batch in enumerate(found)
    }
    arrays["records"] = np.stack([batch.record_index for batch in found])
    arrays["evaluated"] = np.concatenate([batch.record_index for batch in evaluated])
    np.savez(folder / f"process_{process_id}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
