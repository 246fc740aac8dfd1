"""Pictures of a report: single mistakes as thumbnails, the worst and some random images whole."""

from collections.abc import Iterable, Sequence

import numpy as np

from atss_jax.data.batch_rows import read_image
from atss_jax.data.dataset import DetectionDataset
from atss_jax.drawing import visualize
from atss_jax.drawing.html_page import figures, note, picture, thumbnail
from atss_jax.drawing.palette import DETECTION_COLOR, MISTAKE_COLOR, OBJECT_COLOR
from atss_jax.evaluation.error_analysis import KINDS, Scene, Verdicts

THUMBNAILS = 12
"""Of the worst false positives, and of the largest missed objects."""
WHOLE_IMAGES = 4
"""Of the worst images, and of random ones."""
LONG_SIDE = 900
"""Px of a whole image at most."""


def false_positives(
    dataset: DetectionDataset,
    scenes: Sequence[Scene],
    verdicts: Sequence[Verdicts],
    names: Sequence[str],
) -> str:
    """Thumbnails of the wrong detections with the highest scores."""
    wrong = [
        (-scene.scores[i], record, i, KINDS[kind])
        for record, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True))
        for i, kind in enumerate(verdict.kinds)
        if KINDS[kind] != "correct"
    ]
    shown = []
    for score, record, i, kind in sorted(wrong)[:THUMBNAILS]:
        scene = scenes[record]
        caption = f"{names[scene.labels[i]]} {-score:.2f}: {kind}; {dataset.file_name(record)}"
        drawn = [(scene.gt_boxes, OBJECT_COLOR), (scene.boxes[i : i + 1], MISTAKE_COLOR)]
        shown.append(thumbnail(read_image(dataset, record), scene.boxes[i], caption, drawn))
    keys = [("the detection", MISTAKE_COLOR), ("annotated objects", OBJECT_COLOR)]
    return (note("", keys) if shown else "") + figures(shown)


def missed_objects(
    dataset: DetectionDataset,
    scenes: Sequence[Scene],
    verdicts: Sequence[Verdicts],
    names: Sequence[str],
) -> str:
    """Thumbnails of the largest objects without a detection."""
    missed = [
        (-float(np.prod(scene.gt_boxes[i, 2:] - scene.gt_boxes[i, :2])), record, int(i))
        for record, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True))
        for i in np.flatnonzero(verdict.is_missed)
    ]
    shown = []
    for _, record, i in sorted(missed)[:THUMBNAILS]:
        scene = scenes[record]
        caption = f"{names[scene.gt_labels[i]]}; {dataset.file_name(record)}"
        drawn = [(scene.boxes, DETECTION_COLOR), (scene.gt_boxes[i : i + 1], OBJECT_COLOR)]
        shown.append(thumbnail(read_image(dataset, record), scene.gt_boxes[i], caption, drawn))
    keys = [("the missed object", OBJECT_COLOR), ("detections", DETECTION_COLOR)]
    return (note("", keys) if shown else "") + figures(shown)


def whole_images(
    dataset: DetectionDataset,
    scenes: Sequence[Scene],
    verdicts: Sequence[Verdicts],
    names: Sequence[str],
) -> tuple[str, str]:
    """The images with most mistakes, and some random ones (the same ones for every run)."""
    mistakes = [
        int((verdict.kinds != KINDS.index("correct")).sum() + verdict.is_missed.sum())
        for verdict in verdicts
    ]
    order = np.argsort(-np.array(mistakes), kind="stable")[:WHOLE_IMAGES]
    worst = [int(record) for record in order if mistakes[record]]
    count = min(WHOLE_IMAGES, dataset.num_records)
    random = np.random.default_rng(0).choice(dataset.num_records, count, replace=False)
    keys = [
        ("correct", DETECTION_COLOR),
        ("wrong detection", MISTAKE_COLOR),
        ("missed object", OBJECT_COLOR),
    ]

    def draw(records: Iterable[int]) -> str:
        return figures(
            [
                picture(
                    draw_verdict(read_image(dataset, r), scenes[r], verdicts[r], names),
                    _summary(dataset.file_name(r), scenes[r], verdicts[r]),
                )
                for r in records
            ]
        )

    return note("", keys) + draw(worst), note("", keys) + draw(sorted(random.tolist()))


def draw_verdict(
    image: np.ndarray, scene: Scene, verdict: Verdicts, names: Sequence[str]
) -> np.ndarray:
    """An image with all its detections and missed objects; text at mistakes alone.

    Args:
      image: uint8 RGB [H, W, 3].
      scene: of the image.
      verdict: of the scene.
      names: of the classes.
    """
    factor = min(1.0, LONG_SIDE / max(image.shape[:2]))
    drawn = visualize.shrink(image, factor)
    is_right = verdict.kinds == KINDS.index("correct")
    drawn, more = visualize.enlarge(drawn)
    factor *= more
    drawn = visualize.draw_boxes(drawn, scene.boxes[is_right] * factor, color=DETECTION_COLOR)
    missed = verdict.is_missed
    drawn = visualize.draw_boxes(
        drawn, scene.gt_boxes[missed] * factor, scene.gt_labels[missed], None, names,
        color=OBJECT_COLOR,
    )  # fmt: skip
    wrong = ~is_right
    return visualize.draw_boxes(
        drawn, scene.boxes[wrong] * factor, scene.labels[wrong], scene.scores[wrong], names,
        color=MISTAKE_COLOR,
    )  # fmt: skip


def _summary(name: str, scene: Scene, verdict: Verdicts) -> str:
    correct = int((verdict.kinds == KINDS.index("correct")).sum())
    wrong, missed = len(verdict.kinds) - correct, int(verdict.is_missed.sum())
    objects = visualize.count_of(len(scene.gt_labels), "object")
    mistakes = visualize.count_of(wrong, "wrong detection")
    return f"{name}: {objects}, {correct} found, {missed} missed, {mistakes}"
