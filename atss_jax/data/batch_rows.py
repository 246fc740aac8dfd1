"""Rows of a batch: which records one process decodes, and the decoding itself.

The loader decides where this runs (threads, worker processes) and in which order.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from atss_jax.data import images
from atss_jax.data.batch_plan import PlannedBatch
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.images import Augmentation
from atss_jax.structures import Batch, GroundTruth

ON_OVERFLOW = ("error", "largest")


class Rows(NamedTuple):
    """What one process decodes for a batch."""

    bucket: tuple[int, int]
    record_index: Int[np.ndarray, " b"]
    """-1 for rows that stay empty."""
    target: Int[np.ndarray, "b 2"]
    """(h, w) px after resizing."""
    augmentations: tuple[Augmentation, ...]


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that a process reads.

    Raises:
      ValueError: the batch does not divide over the processes.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: it lies in [0, {process_count}).")
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} does not divide over {process_count} processes. Choose a "
            "multiple."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def planned_rows(planned: PlannedBatch, rows: slice) -> Rows:
    """A process' part of a planned batch."""
    return Rows(
        bucket=planned.bucket,
        record_index=planned.record_index[rows],
        target=planned.target[rows],
        augmentations=tuple(
            planned.augmentation(i) for i in range(*rows.indices(len(planned.record_index)))
        ),
    )


def check_overflow(dataset: DetectionDataset, max_boxes: int, on_overflow: str) -> None:
    """Finds images with more boxes than slots before anything is read.

    Raises:
      ValueError: there are some and `on_overflow` is "error"; or another value of it.
    """
    if on_overflow not in ON_OVERFLOW:
        raise ValueError(f"data.on_overflow={on_overflow!r}: use one of {', '.join(ON_OVERFLOW)}.")
    counts = dataset.num_boxes
    over = np.flatnonzero(counts > max_boxes)
    if not len(over):
        return
    worst = int(counts.argmax())
    if on_overflow == "error":
        first = int(over[0])
        raise ValueError(
            f"image {dataset.image_ids[first]} ({dataset.file_name(first)}): {counts[first]} "
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
    rows: Rows,
    max_boxes: int,
    *,
    empty: Callable[..., np.ndarray] = np.empty,
) -> Batch:
    """Reads, decodes and places the images of a batch.

    Args:
      dataset: the images.
      rows: what to decode, and how.
      max_boxes: ground-truth slots.
      empty: allocates the pixels, by (shape, dtype).

    Raises:
      ValueError: an image that does not decode; it names file and id.
    """
    count = len(rows.record_index)
    pixels = empty((count, *rows.bucket, 3), np.uint8)
    batch = Batch(
        image=pixels,
        image_size=np.tile(np.array(rows.bucket, np.int32), (count, 1)),
        ground_truth=GroundTruth(
            boxes=np.zeros((count, max_boxes, 4), np.float32),
            labels=np.zeros((count, max_boxes), np.int32),
            is_valid=np.zeros((count, max_boxes), np.bool_),
        ),
        record_index=rows.record_index,
        scale=np.ones((count, 2), np.float32),
    )
    plain = pixels.view(np.ndarray)
    for row, record in enumerate(rows.record_index.tolist()):
        if record < 0:
            plain[row] = 0
            continue
        augmentation = rows.augmentations[row]
        height, width = rows.target[row].tolist()
        image = read_image(dataset, record)
        placement = images.write_row(plain[row], image, (height, width), augmentation)
        batch.image_size[row] = placement.size
        batch.scale[row] = placement.scale
        boxes, keep = images.move_boxes(
            dataset.boxes(record), image.shape[1], placement, augmentation.flip
        )
        _fill_boxes(batch.ground_truth, row, boxes[keep], dataset.labels(record)[keep])
    return batch


def read_image(dataset: DetectionDataset, record: int) -> UInt8[np.ndarray, "h w 3"]:
    """The decoded image of a record, uint8 RGB, turned by the EXIF policy.

    Raises:
      ValueError: it does not decode, or has another size than when the data set was read.
    """
    try:
        image = images.decode(dataset.image_bytes(record), int(dataset.orientations[record]))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"image {dataset.image_ids[record]} ({dataset.file_name(record)}) of {dataset.name}: "
            f"{error}. Mend or remove it; scripts/check_data.py --decode finds all such files."
        ) from error
    if image.shape[:2] != tuple(dataset.sizes[record]):
        raise ValueError(
            f"image {dataset.image_ids[record]} ({dataset.file_name(record)}) of {dataset.name}: "
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
