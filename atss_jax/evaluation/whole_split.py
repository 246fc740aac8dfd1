"""The predict step, and the exact evaluation of a whole split with it.

Every image counts once, whatever the number of hosts and devices and the batch size: rows that
fill up batches are dropped by their `record_index` of -1, results are gathered over hosts and
sorted by record, and a missing or doubled image is an error.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from atss_jax.evaluation.coco_metrics import coco_metrics, detections_to_coco
from atss_jax.evaluation.passes import Pass, merge_images
from atss_jax.evaluation.postprocess import postprocess_batch
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.models.detector import normalize_images
from atss_jax.runtime import parallel
from atss_jax.structures import Batch, Detections
from atss_jax.typing import Array, Float, Int, UInt8

PredictStep = Callable[[Any, Any, Any, Any], Detections]
"""(variables, images, image_size, scale), leading B, -> Detections in original coordinates."""

BATCHES_IN_FLIGHT = 3
"""Batches given to the devices before the oldest result is fetched."""


@runtime_checkable
class Network(Protocol):
    """`models.detector.Detector`, or whatever answers like it."""

    def apply(self, variables: Any, images: Any, image_size: Any, /, *, train: bool) -> Any:
        """`HeadOutputs` of normalised images."""
        ...


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


def make_predict_step(
    model: Network,
    grid: AnchorGrid,
    *,
    normalize: dict[str, Any],
    postprocess: dict[str, Any],
    mesh: Mesh | None = None,
    flip: bool = False,
) -> PredictStep:
    """The jitted inference of a batch; it compiles once for each bucket.

    Args:
      model: the network.
      grid: its anchors, over any bucket.
      normalize: keywords of `normalize_images`.
      postprocess: keywords of `postprocess`.
      mesh: devices over which the batch is split; None for whatever device holds the arrays.
      flip: look at the mirrored images; the boxes come back unmirrored.
    """

    def predict(variables, images, image_size, scale):
        if flip:
            images = mirror_images(images, image_size)
        normalized = normalize_images(images, image_size, **normalize)
        outputs = model.apply(variables, normalized, image_size, train=False)
        bucket_grid = grid.with_image_shape((images.shape[1], images.shape[2]))

        def local(outputs, image_size, scale):
            found: Any = postprocess_batch(outputs, bucket_grid, image_size, scale, **postprocess)
            if flip:
                found = found._replace(boxes=mirror_boxes(found.boxes, image_size, scale))
            return found

        if mesh is None:
            return local(outputs, image_size, scale)
        # Selections and NMS stay on the device that holds the image: jit alone would gather.
        rows = PartitionSpec(parallel.AXIS)
        detect_local = jax.shard_map(
            local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )
        return detect_local(outputs, image_size, scale)

    return jax.jit(predict)


def mirror_images(
    images: UInt8[Array, "B H W 3"], image_size: Int[Array, "B 2"]
) -> UInt8[Array, "B H W 3"]:
    """Images with their content mirrored left to right and its upper left corner in place."""
    columns = jnp.arange(images.shape[2])[None]  # [1, W]
    width = image_size[:, 1:]
    source = jnp.where(columns < width, width - 1 - columns, columns)  # [B, W]
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def mirror_boxes(
    boxes: Float[Array, "B D 4"], image_size: Int[Array, "B 2"], scale: Float[Array, "B 2"]
) -> Float[Array, "B D 4"]:
    """Boxes in original px mirrored left to right within their images; undoes itself."""
    width = (image_size[:, 1] / scale[:, 1])[:, None]  # [B, 1], original px
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def evaluate(
    predict_step: PredictStep,
    variables: Any,
    batches: Iterator[Batch],
    dataset: EvaluationSet,
    *,
    mesh: Mesh,
    backend: str = "pycocotools",
    with_metrics: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """Metrics and COCO results of a split; the same for any hosts, devices and batch size.

    Args:
      predict_step: from `make_predict_step` with the same mesh.
      variables: {"params": ..., "batch_stats": ...}.
      batches: this host's rows of every global batch (as many batches on each host).
      dataset: names, ids and annotations of the split.
      mesh: the devices.
      backend: see `coco_metrics`.
      with_metrics: False leaves the metrics empty (no annotations: test-dev).
      should_stop: asked before each batch.

    Returns:
      (metrics, results), on every host; None when told to stop.

    Raises:
      RuntimeError: an image was seen twice, or not at all.
    """
    found = detect_all(predict_step, variables, batches, mesh=mesh, should_stop=should_stop)
    if found is None:
        return None
    record_index, detections, _ = found
    return score(record_index, detections, dataset, backend=backend, with_metrics=with_metrics)


def evaluate_passes(
    predict_steps: tuple[PredictStep, PredictStep],
    variables: Any,
    make_batches: Callable[[Pass], Iterator[Batch]],
    passes: Sequence[Pass],
    dataset: EvaluationSet,
    *,
    mesh: Mesh,
    backend: str = "pycocotools",
    with_metrics: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """`evaluate` with test-time augmentation: several passes over the split, merged by voting.

    Args:
      predict_steps: the plain and the mirroring one.
      variables: as in `evaluate`.
      make_batches: this host's batches of the whole split at the size of a pass.
      passes: from `multiscale.make_passes`.
      dataset: as in `evaluate`, and so are the next ones.
      mesh: the devices.
      backend: of the metrics.
      with_metrics: False leaves them empty.
      should_stop: asked before each batch.

    Returns:
      As `evaluate`.
    """
    found = []
    for one_pass in passes:
        answer = detect_all(
            predict_steps[one_pass.flip],
            variables,
            make_batches(one_pass),
            mesh=mesh,
            should_stop=should_stop,
        )
        if answer is None:
            return None
        found.append(answer)
    record_index = found[0][0]
    merged = merge_images(
        [(p, detections, scale) for p, (_, detections, scale) in zip(passes, found, strict=True)]
    )
    return score(record_index, merged, dataset, backend=backend, with_metrics=with_metrics)


def score(
    record_index: np.ndarray,
    detections: Detections,
    dataset: EvaluationSet,
    *,
    backend: str,
    with_metrics: bool,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(metrics, results) of the detections of a whole split.

    Args:
      record_index: record of each row, [N].
      detections: host arrays, [N, D].
      dataset: as in `evaluate`.
      backend: of the metrics.
      with_metrics: False leaves them empty.

    Raises:
      RuntimeError: a record is there twice, or not at all.
    """
    check_each_once(record_index, len(dataset.image_ids))
    results = detections_to_coco(detections, record_index, dataset.image_ids, dataset.category_ids)
    if not with_metrics:
        return {}, results
    metrics = coco_metrics(
        dataset.coco_ground_truth(),
        results,
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        backend=backend,
    )
    return metrics, results


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
    rows: list[tuple] = []
    in_flight: collections.deque = collections.deque()

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


def _pad_rows(arrays: tuple, multiple: int) -> tuple:
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
