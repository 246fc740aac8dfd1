"""The exact evaluation of a whole split: every image once, on any hosts, devices and batch size.

Rows that fill up batches are dropped by their `record_index` of -1, results are gathered over hosts
and sorted by record, and a missing or doubled image is an error.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from atss_jax.evaluation.coco_metrics import COCO_LIMIT, coco_metrics
from atss_jax.evaluation.coco_results import detections_to_coco
from atss_jax.evaluation.passes import Pass, merge_images
from atss_jax.evaluation.predict_step import PredictStep
from atss_jax.runtime import parallel
from atss_jax.structures import Batch, Detections
from atss_jax.typing import AnyArray, Array

BATCHES_IN_FLIGHT = 3
"""Batches given to the devices before the oldest result is fetched."""


@runtime_checkable
class EvaluationSet(Protocol):
    """What an evaluation needs to know about a data set."""

    @property
    def image_ids(self) -> Any:
        """COCO image id of each record."""
        ...

    @property
    def category_ids(self) -> Any:
        """COCO category id of each class."""
        ...

    @property
    def class_names(self) -> Any:
        """Name of each class."""
        ...

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotations in COCO's format."""
        ...


class PlannedPass(NamedTuple):
    """One look at all images, ready to be taken."""

    settings: Pass
    predict_step: PredictStep
    """From `make_predict_step` with the mesh of the evaluation, mirroring as the pass does."""
    make_batches: Callable[[], Iterator[Batch]]
    """This host's rows of every global batch, at the size of the pass; each host makes as many
    batches."""


class Outcome(NamedTuple):
    """What an evaluation found; the same on every host."""

    metrics: dict[str, float]
    """The 12 numbers, "AP/<class>" and "AR/<class>"; empty without metrics."""
    detections: Detections
    """Host arrays [N, D], original px; row i is the data set's record i."""


def evaluate(
    passes: Sequence[PlannedPass],
    variables: Any,
    dataset: EvaluationSet,
    *,
    mesh: Mesh,
    backend: str = "pycocotools",
    with_metrics: bool = True,
    max_detections: int = COCO_LIMIT,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Detections and metrics of a split; the same for any hosts, devices and batch size.

    Args:
      passes: one for a plain evaluation; the detections of several are merged by voting.
      variables: {"params": ..., "batch_stats": ...}.
      dataset: names, ids and annotations of the split.
      mesh: the devices.
      backend: see `coco_metrics`.
      with_metrics: False leaves the metrics empty (no annotations: test-dev).
      max_detections: see `coco_metrics`.
      should_stop: asked before each batch.

    Returns:
      The outcome, on every host; None when told to stop.

    Raises:
      RuntimeError: an image was seen twice, or not at all.
      ValueError: a detection is not finite.
    """
    found = []
    for one_pass in passes:
        answer = detect_all(
            one_pass.predict_step,
            variables,
            one_pass.make_batches(),
            mesh=mesh,
            should_stop=should_stop,
        )
        if answer is None:
            return None
        record_index, detections, scale = answer
        check_each_once(record_index, len(dataset.image_ids))
        found.append((one_pass.settings, detections, scale))
    merged = found[0][1] if len(found) == 1 else merge_images(found)
    metrics = {}
    if with_metrics:
        metrics = measure(merged, dataset, backend=backend, max_detections=max_detections)
    return Outcome(metrics, merged)


def measure(
    detections: Detections,
    dataset: EvaluationSet,
    *,
    backend: str = "pycocotools",
    max_detections: int = COCO_LIMIT,
) -> dict[str, float]:
    """Metrics of the detections of a whole split, see `coco_metrics`.

    Args:
      detections: host arrays, [N, D]; row i is record i.
      dataset: names, ids and annotations of the split.
      backend: of the metrics.
      max_detections: likewise.
    """
    return coco_metrics(
        dataset.coco_ground_truth(),
        detections_to_coco(detections, dataset.image_ids, dataset.category_ids),
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        backend=backend,
        max_detections=max_detections,
    )


def detect_all(
    predict_step: PredictStep,
    variables: Any,
    batches: Iterator[Batch],
    *,
    mesh: Mesh,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, Detections, np.ndarray] | None:
    """Detections of all images of all hosts, sorted by record; arguments as `evaluate`.

    The devices work while the host decodes the next images and fetches older results.

    Returns:
      Record index [N], detections [N, D], scale [N, 2] (resized = original * scale; y, x) on the
      host; None when told to stop.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    in_flight: collections.deque[tuple[np.ndarray, np.ndarray, Any]] = collections.deque()

    def fetch():
        record_index, scale, detections = in_flight.popleft()
        keep = record_index >= 0
        local = (_local_rows(field)[: len(keep)][keep] for field in detections)
        rows.append((record_index[keep], scale[keep], *local))

    for batch in batches:
        if should_stop():
            return None
        arrays = (batch.image, batch.image_size, batch.scale)
        arrays = parallel.shard_batch(_pad_rows(arrays, len(mesh.local_devices)), mesh)
        detections = predict_step(variables, *arrays)
        in_flight.append((np.asarray(batch.record_index), np.asarray(batch.scale), detections))
        if len(in_flight) > BATCHES_IN_FLIGHT:
            fetch()
    while in_flight:
        fetch()
    if not rows:
        raise RuntimeError("no batch to evaluate: the split has no images.")
    columns = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    record_index, scale, *fields = _gather_hosts(columns)
    order = np.argsort(record_index, kind="stable")
    return record_index[order], Detections(*(field[order] for field in fields)), scale[order]


def check_each_once(record_index: np.ndarray, num_records: int) -> None:
    """Raises RuntimeError unless every record of 0..`num_records` - 1 is there once."""
    counts = np.bincount(record_index, minlength=num_records)
    wrong = np.flatnonzero(counts != 1)
    if len(counts) != num_records or wrong.size:
        raise RuntimeError(
            f"the evaluation saw {len(record_index)} rows for {num_records} images; records "
            f"{wrong[:5].tolist()} were seen {counts[wrong[:5]].tolist()} times instead of once."
        )


def _pad_rows(arrays: tuple[AnyArray, ...], multiple: int) -> tuple[np.ndarray, ...]:
    """Arrays with their first row repeated until their number of rows is a multiple."""
    pad = -len(arrays[0]) % multiple
    return tuple(np.concatenate([a, np.repeat(a[:1], pad, axis=0)]) for a in arrays)


def _local_rows(array: Array) -> np.ndarray:
    """This host's rows of an array that is split along its first axis."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _gather_hosts(columns: list[np.ndarray]) -> list[np.ndarray]:
    """The rows of all hosts, which may differ in number."""
    if jax.process_count() == 1:
        return columns
    from jax.experimental import multihost_utils

    counts = np.asarray(multihost_utils.process_allgather(np.array(len(columns[0]))))
    longest = int(counts.max())
    gathered = []
    for column in columns:
        pad = [(0, longest - len(column))] + [(0, 0)] * (column.ndim - 1)
        everyone = np.asarray(multihost_utils.process_allgather(np.pad(column, pad)))
        gathered.append(
            np.concatenate([rows[:n] for rows, n in zip(everyone, counts, strict=True)])
        )
    return gathered
