"""Host batches: this process' rows of the planned global batches, and every image once to evaluate.

Grain runs the work on threads or in worker processes, in the order of the steps. A worker writes
pixels straight into the shared memory that the training process receives. NumPy out: placing a
batch on devices is `parallel.shard_batch`'s task.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import jax
import numpy as np
from absl import flags

from atss_jax.data.augment_list import Augmentations
from atss_jax.data.batch_plan import BatchPlan, PlannedBatch, choose_bucket, fit_error
from atss_jax.data.batch_rows import check_overflow, make_batch, process_rows
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.images import resized_size
from atss_jax.errors import UserError
from atss_jax.structures import Batch, GroundTruth

NUM_STEPS = 2**40
"""Grain wants a length; the plan is endless."""
SHARED_MEMORY_BYTES = 2**16
"""Smaller arrays travel through the pipe."""
POLL_SECONDS = 0.2
"""While a batch does not come, the wish to stop is looked at so often."""
CLOSE_SECONDS = 5.0
"""Threads and workers get so long to end."""
EVAL_PREFETCH = 2
"""Evaluation batches prepared ahead, one thread each."""

_in_worker_process = False


class Batches(Iterator[Batch]):
    """Batches in order. Close it to end its threads and workers; also a context manager."""

    def __init__(self, batches: Any, length: int | None):
        self._batches: Any = iter(batches)
        self._length = length
        self._is_closed = False
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def next_unless(self, should_stop: Callable[[], bool]) -> Batch | None:
        """The next batch; None if `should_stop` says so while it does not come.

        After None only `close` may be called: a read that blocks, such as of a dead mount, cannot
        be broken off.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, daemon=True)
            self._thread.start()
        self._asked.put(True)
        while True:
            try:
                answer = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if should_stop():
                    return None
                continue
            if isinstance(answer, BaseException):
                raise answer
            return answer

    def _answer(self) -> None:
        """Takes batches for `next_unless`, one when asked, until `close`."""
        while self._asked.get():
            try:
                answer = next(self._batches)
            except BaseException as error:  # noqa: BLE001 - raised where the batch is wanted
                answer = error
            self._answers.put(answer)
            del answer

    def __next__(self) -> Batch:
        return next(self._batches)

    def __len__(self) -> int:
        """Batches in all, where that is finite."""
        if self._length is None:
            raise TypeError("training batches are endless")
        return self._length

    def close(self) -> None:
        """Ends threads and worker processes; safe to call twice.

        Gives up after `CLOSE_SECONDS`: a thread in a read that blocks does not end.
        """
        if not self._is_closed:
            self._is_closed = True
            self._asked.put(False)
            closing = threading.Thread(target=self._batches.close, daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if closing.is_alive():
                logging.warning("the input did not end within %.0f s: left alone", CLOSE_SECONDS)
            self._batches = iter(())  # lets go of batches that were prepared and not taken

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batch_shapes(bucket: tuple[int, int], batch_size: int, max_boxes: int) -> Batch:
    """Shapes and types of a batch (`jax.ShapeDtypeStruct`), to compile before data is there."""

    def array(*shape: int, dtype: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    return Batch(
        image=array(*bucket, 3, dtype=np.uint8),
        image_size=array(2, dtype=np.int32),
        ground_truth=GroundTruth(
            boxes=array(max_boxes, 4),
            labels=array(max_boxes, dtype=np.int32),
            is_valid=array(max_boxes, dtype=np.bool_),
        ),
        record_index=array(dtype=np.int32),
        scale=array(2),
    )


class _PlannedBatches(grain.transforms.Map):
    """Number -> this process' rows of a planned batch. Runs in the workers."""

    def __init__(
        self,
        dataset: DetectionDataset,
        planned: Callable[[int], PlannedBatch],
        rows: slice,
        max_boxes: int,
        augmentations: Augmentations | None,
    ):
        self._dataset, self._planned, self._rows = dataset, planned, rows
        self._max_boxes, self._augmentations = max_boxes, augmentations

    def map(self, element: int) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batch, in memory that the training process can map when in a worker."""
        return make_batch(
            self._dataset,
            self._planned(int(element)).rows(self._rows),
            self._max_boxes,
            augmentations=self._augmentations,
            empty=grain.multiprocessing.SharedMemoryArray if _in_worker_process else np.empty,
        )


def train_batches(
    dataset: DetectionDataset,
    plan: BatchPlan,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    max_boxes: int = 100,
    on_overflow: str = "error",
    prefetch: int = 2,
) -> Batches:
    """Endless training batches from a step on, with this process' rows.

    Args:
      dataset: the images.
      plan: made from the same data set.
      start_step: first step to yield.
      process_index: this host.
      process_count: hosts; the global batch divides over them.
      num_workers: worker processes; 0 works on threads of this one.
      max_boxes: ground-truth slots.
      on_overflow: images with more boxes: "error", or "largest" to keep the largest ones.
      prefetch: batches prepared ahead; with workers at least one for each.

    Returns:
      The batches; call `close()` at the end.

    Raises:
      ValueError: more boxes than slots (named before anything is read), an uneven batch. While
        iterating: an image that does not decode.
    """
    check_overflow(dataset, max_boxes, on_overflow)
    rows = process_rows(plan.global_batch, process_index, process_count)
    steps = grain.MapDataset.range(start_step, NUM_STEPS)
    batches = steps.map(_PlannedBatches(dataset, plan.step, rows, max_boxes, plan.augmentations))
    return Batches(_run(batches, num_workers, prefetch), None)


def batch_at(
    dataset: DetectionDataset,
    plan: BatchPlan,
    step: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    max_boxes: int = 100,
    on_overflow: str = "error",
) -> Batch:
    """The batch that `train_batches` yields for a step, read now."""
    check_overflow(dataset, max_boxes, on_overflow)
    rows = process_rows(plan.global_batch, process_index, process_count)
    planned = plan.step(step).rows(rows)
    return make_batch(dataset, planned, max_boxes, augmentations=plan.augmentations)


def eval_batches(
    dataset: DetectionDataset,
    *,
    buckets: Sequence[tuple[int, int]],
    short_side: int,
    max_long_side: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_boxes: int = 100,
) -> Batches:
    """Every image exactly once over all processes, each in its smallest bucket, unaugmented.

    All processes yield the same number of batches in the same buckets; the last ones of a bucket
    are filled up with empty rows (`record_index` -1, size of the bucket, no boxes).

    Args:
      dataset: the images.
      buckets: padded shapes (H, W).
      short_side: wanted shorter side, px.
      max_long_side: limit of the longer side, px.
      batch_size: rows over all processes.
      process_index: this host.
      process_count: hosts.
      max_boxes: ground-truth slots. The largest objects are kept where an image has more; metrics
        take the objects from the data set.

    Raises:
      ValueError: an image that fits no bucket.
    """
    mine = process_rows(batch_size, process_index, process_count)
    members: dict[tuple[int, int], list[int]] = {(int(b[0]), int(b[1])): [] for b in buckets}
    targets = np.zeros((dataset.num_records, 2), np.int32)
    for index, (height, width) in enumerate(dataset.sizes.tolist()):
        target = resized_size((height, width), short_side, max_long_side)
        bucket = choose_bucket(target, list(members))
        if bucket is None:
            raise fit_error(dataset.describe(index), target, buckets)
        members[bucket].append(index)
        targets[index] = target
    planned = []
    for bucket, records in members.items():
        for first in range(0, len(records), batch_size):
            chosen = np.full(batch_size, -1, np.int32)
            part = records[first : first + batch_size]
            chosen[: len(part)] = part
            planned.append(PlannedBatch(bucket, chosen, targets[chosen]))
    places = grain.MapDataset.range(len(planned))
    batches = places.map(
        _PlannedBatches(dataset, planned.__getitem__, mine, max_boxes, augmentations=None)
    )
    return Batches(_run(batches, 0, EVAL_PREFETCH), len(planned))


def _run(batches: Any, num_workers: int, prefetch: int) -> Any:
    """Grain's iterator over mapped batches, on threads or in processes."""
    if num_workers < 0 or prefetch < 0:
        raise UserError(
            f"data.num_workers={num_workers}, data.prefetch={prefetch}: neither may be negative."
        )
    cv2.setNumThreads(1)  # the batches run in parallel, an image need not
    if num_workers == 0:
        options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        return iter(batches.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; a notebook has parsed none
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.experimental.WithOptionsIterDataset(
        batches.to_iter_dataset(options),
        grain.experimental.DatasetOptions(min_shm_size=SHARED_MEMORY_BYTES),
    )
    each = max(1, -(-prefetch // num_workers))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=each)
    return iter(dataset.mp_prefetch(workers, worker_init_fn=_start_worker))


def _end_with(sentinel: int) -> None:
    """Ends this worker when the training process ends, however it does: the system says so."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _start_worker(_index: int, _count: int) -> None:
    """Runs once in each worker process."""
    global _in_worker_process
    _in_worker_process = True
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    cv2.setNumThreads(1)
