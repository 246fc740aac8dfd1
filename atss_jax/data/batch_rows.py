"""Rows of a batch: which records one process decodes, and the decoding itself.

The loader decides where this runs (threads, worker processes) and in which order.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from atss_jax.data import decoding
from atss_jax.data.augment import Sample
from atss_jax.data.augment_list import Augmentations
from atss_jax.data.batch_plan import PlannedBatch
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.images import Placement
from atss_jax.errors import UserError
from atss_jax.structures import Batch, GroundTruth

ON_OVERFLOW = ("error", "largest")


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that a process reads.

    Raises:
      ValueError: the batch does not divide over the processes.
    """
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index}: it lies in [0, {process_count}).")
    if batch_size % process_count:
        raise UserError(
            f"a batch of {batch_size} does not divide over {process_count} processes. Choose a "
            "multiple."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def check_overflow(dataset: DetectionDataset, max_boxes: int, on_overflow: str) -> None:
    """Finds images with more boxes than slots before anything is read.

    Raises:
      ValueError: there are some and `on_overflow` is "error"; or another value of it.
    """
    if on_overflow not in ON_OVERFLOW:
        raise UserError(f"data.on_overflow={on_overflow!r}: use one of {', '.join(ON_OVERFLOW)}.")
    counts = dataset.num_boxes
    over = np.flatnonzero(counts > max_boxes)
    if not len(over):
        return
    worst = int(counts.argmax())
    if on_overflow == "error":
        first = int(over[0])
        raise UserError(
            f"image {dataset.image_id(first)} ({dataset.file_name(first)}): {counts[first]} "
            f"ground-truth boxes, but data.max_boxes={max_boxes} ({len(over)} such images, at most "
            f'{counts[worst]} boxes). Raise it, or set data.on_overflow="largest".'
        )
    lost = int((counts[over] - max_boxes).sum())
    logging.warning(
        "%s: %d images have more than data.max_boxes=%d boxes; their %d smallest are left out",
        dataset.name,
        len(over),
        max_boxes,
        lost,
    )


def make_batch(
    dataset: DetectionDataset,
    planned: PlannedBatch,
    max_boxes: int,
    *,
    augmentations: Augmentations | None = None,
    empty: Callable[..., np.ndarray] = np.empty,
) -> Batch:
    """Reads, decodes, augments and places the images of a batch.

    Augmentations that mix several images may make more boxes than there are slots; the largest are
    kept.

    Args:
      dataset: the images.
      planned: what to decode, and at which size.
      max_boxes: ground-truth slots.
      augmentations: what to do to the images; None for nothing.
      empty: allocates the pixels, by (shape, dtype).

    Raises:
      ValueError: an image that does not decode; it names file and id.
    """
    count = len(planned.record_index)
    pixels = empty((count, *planned.bucket, 3), np.uint8)
    batch = Batch(
        image=pixels,
        image_size=np.tile(np.array(planned.bucket, np.int32), (count, 1)),
        ground_truth=GroundTruth(
            boxes=np.zeros((count, max_boxes, 4), np.float32),
            labels=np.zeros((count, max_boxes), np.int32),
            is_valid=np.zeros((count, max_boxes), np.bool_),
        ),
        record_index=planned.record_index,
        scale=np.ones((count, 2), np.float32),
    )
    plain = pixels.view(np.ndarray)
    read = functools.partial(read_sample, dataset)
    for row, record in enumerate(planned.record_index.tolist()):
        if record < 0:
            plain[row] = 0
            continue
        height, width = planned.target[row].tolist()
        sample = dataclasses.replace(read(record), placement=Placement.whole((height, width)))
        if augmentations is not None:
            sample = augmentations.apply(sample, planned.step, planned.first_row + row, read)
        boxes, labels = sample.write(plain[row])
        batch.image_size[row] = sample.placement.size
        batch.scale[row] = sample.placement.scale(sample.image.shape)
        _fill_boxes(batch.ground_truth, row, boxes.astype(np.float32), labels)
    return batch


def read_sample(dataset: DetectionDataset, record: int) -> Sample:
    """A record at its own size.

    Raises:
      ValueError: as in `read_image`.
    """
    image = read_image(dataset, record)
    boxes = dataset.boxes(record).astype(np.float64)
    height, width = image.shape[:2]
    return Sample(image, boxes, dataset.labels(record), Placement.whole((height, width)))


def read_image(dataset: DetectionDataset, record: int) -> UInt8[np.ndarray, "h w 3"]:
    """The decoded image of a record, uint8 RGB, turned by the EXIF policy.

    Raises:
      ValueError: it does not decode, or has another size than when the data set was read.
    """
    try:
        data = dataset.image_bytes(record)
        image = decoding.decode(
            data,
            int(dataset.orientations[record]),
            dataset.max_pixels,
            is_known_whole=bool(dataset.whole_bytes[record] == len(data)),
        )
        dataset.whole_bytes[record] = len(data)
    except (ValueError, OSError) as error:
        raise UserError(
            f"image {dataset.image_id(record)} ({dataset.file_name(record)}) of {dataset.name}: "
            f"{error}. Fix or remove it; `atss check --decode` finds all such files."
        ) from error
    if image.shape[:2] != tuple(dataset.sizes[record]):
        raise UserError(
            f"image {dataset.image_id(record)} ({dataset.file_name(record)}) of {dataset.name}: "
            f"decodes to (h, w) {image.shape[:2]}, but its size is {tuple(dataset.sizes[record])}. "
            "Was the file changed? Prepare the data set again."
        )
    return image


def _fill_boxes(truth: GroundTruth, row: int, boxes: np.ndarray, labels: np.ndarray) -> None:
    """Writes an image's boxes into its slots; of too many the largest, in their old order."""
    slots = truth.labels.shape[1]
    if len(boxes) > slots:
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        largest = np.sort(np.argsort(-area, kind="stable")[:slots])
        boxes, labels = boxes[largest], labels[largest]
    truth.boxes[row, : len(boxes)] = boxes
    truth.labels[row, : len(boxes)] = labels
    truth.is_valid[row, : len(boxes)] = True
