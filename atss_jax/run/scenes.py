"""Detections of an evaluated set beside its objects, image by image."""

from collections.abc import Iterable

import numpy as np

from atss_jax.data.dataset import DetectionDataset
from atss_jax.evaluation.coco_results import with_min_score
from atss_jax.evaluation.error_analysis import Scene
from atss_jax.structures import Detections


def gather_scenes(
    dataset: DetectionDataset,
    detections: Detections,
    threshold: float,
    records: Iterable[int] | None = None,
) -> list[Scene]:
    """Detections from a score on, best first, and objects of each image.

    Args:
      dataset: the evaluated set.
      detections: [N, D]; row i is record i.
      threshold: lowest score.
      records: images to gather; all by default.
    """
    scenes = []
    for record in range(dataset.num_records) if records is None else records:
        found = with_min_score(Detections(*(field[record] for field in detections)), threshold)
        scenes.append(
            Scene(
                np.asarray(found.boxes),
                np.asarray(found.scores),
                np.asarray(found.labels),
                dataset.boxes(record).astype(np.float64),
                dataset.labels(record),
            )
        )
    return scenes
