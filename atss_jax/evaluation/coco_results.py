"""Detections -> COCO's result list -> a file: the only writer of that format, and its reader.

Detections stay arrays everywhere else. Host code: NumPy in, plain dictionaries out.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atss_jax.files import write_whole
from atss_jax.structures import Detections


def detections_to_coco(
    detections: Detections,
    image_ids: Sequence[int] | np.ndarray,
    category_ids: Sequence[int],
    *,
    file_names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Detections of N images as a COCO result list, xywh px.

    Args:
      detections: host arrays, leading N.
      image_ids: COCO image id of each of the N images.
      category_ids: COCO category id of each class index.
      file_names: of each image, also written when given.

    Returns:
      One dictionary per valid detection: image_id, category_id, bbox, score, and file_name.
    """
    results = []
    boxes, scores, labels, is_valid = (np.asarray(field) for field in detections)
    for row, image_id in enumerate(np.asarray(image_ids).tolist()):
        keep = is_valid[row]
        xyxy = boxes[row][keep].astype(np.float64)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        about = {} if file_names is None else {"file_name": file_names[row]}
        for box, score, label in zip(
            xywh.tolist(), scores[row][keep].tolist(), labels[row][keep].tolist(), strict=True
        ):
            results.append(
                {
                    "image_id": int(image_id),
                    "category_id": int(category_ids[label]),
                    "bbox": box,
                    "score": score,
                    **about,
                }
            )
    return results


def coco_to_detections(
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int] | np.ndarray,
    category_ids: Sequence[int],
) -> Detections:
    """The detections of a COCO result list, [N, D], best first; float64, as they were written.

    Args:
      results: as from `detections_to_coco`.
      image_ids: COCO image id of each of the N images.
      category_ids: COCO category id of each class index.

    Raises:
      KeyError: a result about another image or category.
    """
    row_of = {int(image): row for row, image in enumerate(np.asarray(image_ids).tolist())}
    label_of = {int(category): label for label, category in enumerate(category_ids)}
    by_row: list[list[Mapping[str, Any]]] = [[] for _ in row_of]
    for result in results:
        by_row[row_of[result["image_id"]]].append(result)
    shape = (len(by_row), max((len(mine) for mine in by_row), default=0))
    boxes, scores = np.zeros((*shape, 4)), np.zeros(shape)
    labels, is_valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, mine in enumerate(by_row):
        for slot, result in enumerate(sorted(mine, key=lambda r: -r["score"])):
            x, y, width, height = result["bbox"]
            boxes[row, slot] = (x, y, x + width, y + height)
            scores[row, slot] = result["score"]
            labels[row, slot] = label_of[result["category_id"]]
            is_valid[row, slot] = True
    return Detections(boxes, scores, labels, is_valid)


def with_min_score(detections: Detections, score_threshold: float) -> Detections:
    """The valid detections of one image that have at least a score, without empty slots.

    Args:
      detections: of one image, [D].
      score_threshold: lowest score kept.
    """
    keep = np.asarray(detections.is_valid) & (np.asarray(detections.scores) >= score_threshold)
    return Detections(*(np.asarray(field)[keep] for field in detections))


def write_results(path: str | os.PathLike[str], results: Sequence[Mapping[str, Any]]) -> None:
    """Writes a result list as JSON; a reader sees the old file or the new one, never half of one.

    Args:
      path: of the file.
      results: as from `detections_to_coco`.
    """
    write_whole(path, json.dumps(list(results), indent=2, sort_keys=True) + "\n")
