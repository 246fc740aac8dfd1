"""Pictures of a run in its workdir: detections, assignments and curves, after each evaluation."""

import logging

import jax
import numpy as np
from etils import epath

from atss_jax.assigners.registry import needs_predictions
from atss_jax.data import decoding, loader
from atss_jax.data.dataset import DetectionDataset
from atss_jax.drawing import visualize
from atss_jax.evaluation.coco_results import with_min_score
from atss_jax.evaluation.error_analysis import best_threshold
from atss_jax.geometry.anchors import make_grid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.run.recipe import Recipe
from atss_jax.run.scenes import gather_scenes
from atss_jax.run.training_setup import Setup
from atss_jax.runtime.metric_writer import MetricWriter, read_rows
from atss_jax.structures import Batch, Detections
from atss_jax.training.targets import assign_targets

SHOWN_SCORE = 0.3
"""Detections are drawn from this score on where none is correct."""
MAX_JUDGED = 500
"""Images that the threshold of a drawing is chosen on."""


def after_evaluation(
    config: Recipe,
    workdir: epath.Path,
    setup: Setup,
    val_set: DetectionDataset,
    detections: Detections,
    step: int,
    writer: MetricWriter,
) -> None:
    """Draws into workdir/pictures, replacing those of the evaluation before.

    Ground truth beside detections of a few validation images, from the score of the best F1 on; the
    assigner's positives per level on a few training images; and the loss and AP curves.

    Args:
      config: the recipe.
      workdir: folder of the run.
      setup: the run's constants.
      val_set: the evaluated set.
      detections: of `val_set`, [N, D]; row i is record i.
      step: of the evaluated state.
      writer: takes the pictures for TensorBoard.
    """
    folder = workdir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    count = min(config.eval.num_pictures, val_set.num_records)
    for number, picture in enumerate(draw_detections(val_set, detections, count)):
        visualize.save_image(folder / f"detections_{number}.jpg", picture)
        writer.write_image(step, f"detections/{number}", picture)
    batch = loader.batch_at(
        setup.train_set,
        setup.plan,
        step,
        max_boxes=config.data.max_boxes,
        on_overflow=config.data.on_overflow,
    )
    for number, picture in enumerate(draw_assignments(setup, config.anchors, batch, count // 2)):
        visualize.save_image(folder / f"positives_{number}.jpg", picture)
        writer.write_image(step, f"positives/{number}", picture)
    writer.flush()
    from atss_jax.drawing import curves  # Matplotlib: half a second of a start

    curves.plot_curves(
        read_rows(workdir / "metrics.jsonl"), folder / "curves.png", title=workdir.name
    )


def draw_detections(
    dataset: DetectionDataset, detections: Detections, count: int
) -> list[np.ndarray]:
    """Ground truth beside detections of `count` images spread over a set.

    Args:
      dataset: the images.
      detections: [N, D]; row i is record i.
      count: pictures.
    """
    pictures = []
    threshold = shown_score(dataset, detections)
    for index in np.linspace(0, dataset.num_records - 1, count).round().astype(int).tolist():
        found = with_min_score(Detections(*(field[index] for field in detections)), threshold)
        pictures.append(
            visualize.draw_side_by_side(
                decoding.decode(
                    dataset.image_bytes(index), int(dataset.orientations[index]), dataset.max_pixels
                ),
                gt_boxes=dataset.boxes(index),
                gt_labels=dataset.labels(index),
                boxes=np.asarray(found.boxes),
                labels=np.asarray(found.labels),
                scores=np.asarray(found.scores),
                class_names=dataset.class_names,
                score_threshold=threshold,
                title=dataset.file_name(index),
            )
        )
    return pictures


def shown_score(dataset: DetectionDataset, detections: Detections) -> float:
    """The score of the best F1, on at most `MAX_JUDGED` images spread over the set.

    Args:
      dataset: the evaluated set.
      detections: [N, D]; row i is record i.
    """
    count = min(dataset.num_records, MAX_JUDGED)
    records = np.unique(np.linspace(0, dataset.num_records - 1, count).round().astype(int))
    scenes = gather_scenes(dataset, detections, 0.0, records.tolist())
    return best_threshold(scenes)[0] or SHOWN_SCORE


def draw_assignments(
    setup: Setup, anchors: AnchorConfig, batch: Batch, count: int
) -> list[np.ndarray]:
    """Positives by level on the first images of a training batch, as the network sees them.

    No pictures for an assigner that looks at predictions: it has no positives without the network.
    """
    if needs_predictions(setup.settings.assign):
        logging.info("no pictures of positives: the assigner needs predictions")
        return []
    _, bucket_height, bucket_width, _ = batch.image.shape
    grid = make_grid(anchors, (bucket_height, bucket_width))
    targets = jax.device_get(
        jax.jit(lambda size, gt: assign_targets(setup.settings.assign, grid, size, gt))(
            batch.image_size, batch.ground_truth
        )
    )
    ends = np.cumsum(grid.num_per_level)[:-1]
    pictures = []
    for row in range(min(count, len(batch.image))):
        positive = np.split(targets.is_positive[row], ends)
        centers = np.split(grid.centers(), ends)
        height, width = batch.image_size[row]
        truth = batch.ground_truth
        pictures.append(
            visualize.draw_positives(
                np.asarray(batch.image[row, :height, :width]),
                [c[p] for c, p in zip(centers, positive, strict=True)],
                np.asarray(truth.boxes[row])[np.asarray(truth.is_valid[row])],
                title=f"image {setup.train_set.image_id(batch.record_index[row])}",
            )
        )
    return pictures
