"""Detections of an evaluated set beside its objects, image by image.

As COCO's AP does, a detection that finds no object but lies on a crowd of its class is left out.
"""

from collections.abc import Iterable

import numpy as np

from atss_jax.data.dataset import DetectionDataset
from atss_jax.evaluation.coco_results import with_min_score
from atss_jax.evaluation.error_analysis import KINDS, MATCH_IOU, Scene, judge_image
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
    all_annotations = dataset.annotations
    scenes = []
    for record in range(dataset.num_records) if records is None else records:
        found = with_min_score(Detections(*(field[record] for field in detections)), threshold)
        scene = Scene(
            np.asarray(found.boxes),
            np.asarray(found.scores),
            np.asarray(found.labels),
            dataset.boxes(record).astype(np.float64),
            dataset.labels(record),
        )
        first, end = np.searchsorted(all_annotations.record, (record, record + 1))
        crowds = first + np.flatnonzero(all_annotations.is_crowd[first:end])
        if len(crowds):
            boxes, labels = all_annotations.xywh[crowds], dataset.annotation_labels[crowds]
            scene = _without_finds_in_crowds(scene, boxes, labels)
        scenes.append(scene)
    return scenes


def _without_finds_in_crowds(scene: Scene, xywh: np.ndarray, labels: np.ndarray) -> Scene:
    """The scene without detections that find no object and lie on a crowd of their class.

    Args:
      scene: of the image.
      xywh: boxes of its crowds, [C, 4].
      labels: of the crowds, [C].
    """
    boxes = np.asarray(scene.boxes, np.float64)
    top_left = np.maximum(boxes[:, None, :2], xywh[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], (xywh[:, :2] + xywh[:, 2:])[None])
    inside = np.prod(np.maximum(bottom_right - top_left, 0), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)[:, None]
    is_on_crowd = (inside >= MATCH_IOU * area) & (scene.labels[:, None] == labels)
    is_correct = judge_image(scene).kinds == KINDS.index("correct")
    kept = is_correct | ~is_on_crowd.any(axis=1)
    return scene._replace(
        boxes=scene.boxes[kept], scores=scene.scores[kept], labels=scene.labels[kept]
    )
