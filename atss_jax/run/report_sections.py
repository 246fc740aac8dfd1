"""Tables and charts of a report, from metrics and matched detections."""

from collections.abc import Mapping, Sequence

import numpy as np

from atss_jax.data.dataset import DetectionDataset
from atss_jax.drawing import curves as line_charts
from atss_jax.drawing import heat_map
from atss_jax.drawing.html_page import chart, note, percent, table
from atss_jax.drawing.palette import LINE_COLORS
from atss_jax.evaluation import error_analysis
from atss_jax.evaluation.coco_metrics import ClassCurves, mean_known, metric_names
from atss_jax.evaluation.error_analysis import KINDS, Scene, ThresholdCurves, Verdicts

PAPER = (39.3, 57.5, 42.8, 24.3, 43.3, 51.3)
"""AP, AP50, AP75, APs, APm, APl of ATSS R-50 on COCO minival (paper, Table 3, last row)."""
CHART_SIZE = (5.2, 3.4)
"""Inches; drawn at 520 px or less, so that letters stay legible on a telephone."""
MAX_MAPPED = 20
"""Classes of a confusion map."""


def is_coco(class_names: Sequence[str]) -> bool:
    """Whether these are COCO's 80 classes, for which the paper has numbers."""
    return len(class_names) == 80 and (class_names[0], class_names[-1]) == ("person", "toothbrush")


def metrics_table(metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
    """The COCO numbers, and the paper's where the data is COCO."""
    names = metric_names(metrics)
    rows = [["this run", *(percent(metrics[name]) for name in names)]]
    if is_coco(class_names):
        rows.append(
            ["paper: COCO minival, R-50", *map(str, PAPER), *["–"] * (len(names) - len(PAPER))]
        )
    return table(["%", *names], rows)


def size_table(dataset: DetectionDataset, metrics: Mapping[str, float]) -> str:
    """Objects, AP and recall of each of COCO's sizes."""
    areas = dataset.annotations.area[~dataset.annotations.is_crowd]
    rows = []
    for name, low, high, letter in (
        ("small, under 32² px", 0, 32**2, "s"),
        ("medium", 32**2, 96**2, "m"),
        ("large, from 96² px", 96**2, np.inf, "l"),
    ):
        count = int(((areas >= low) & (areas < high)).sum())
        rows.append([name, count, percent(metrics[f"AP{letter}"]), percent(metrics[f"AR{letter}"])])
    return table(["size in the image", "objects", "AP", "AR100"], rows)


def class_table(
    dataset: DetectionDataset, names: Sequence[str], curves: Sequence[ClassCurves]
) -> str:
    """Images, objects and AP of each class, at all sizes and at each."""
    labels = [np.unique(dataset.labels(i)) for i in range(dataset.num_records)]
    images = np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=len(names))
    every = [dataset.labels(i) for i in range(dataset.num_records)]
    objects = np.bincount(np.concatenate([np.zeros(0, int), *every]), minlength=len(names))
    rows = []
    for label, (name, curve) in enumerate(zip(names, curves, strict=True)):
        cells = [mean_known(curve.precision[:, :, area]) for area in range(4)]
        at_iou = [mean_known(curve.precision[t, :, 0]) for t in (0, 5)]
        recall = mean_known(curve.recall[:, 0])
        numbers = (percent(v) for v in (cells[0], *at_iou, *cells[1:], recall))
        rows.append([name, int(images[label]), int(objects[label]), *numbers])
    header = ["class", "images", "objects", "AP", "AP50", "AP75", "small", "medium", "large"]
    return table([*header, "AR100"], rows)


def precision_charts(names: Sequence[str], curves: Sequence[ClassCurves]) -> str:
    """Precision over recall: of each class at IoU 0.5, and of all classes at several IoUs."""
    recall = np.linspace(0, 1, 101)
    known = [
        (n, c) for n, c in zip(names, curves, strict=True) if (c.precision[0, :, 0] > -1).all()
    ]
    by_class = [
        line_charts.Line(n, recall, c.precision[0, :, 0]) for n, c in known[: len(LINE_COLORS)]
    ]
    by_iou = [
        line_charts.Line(
            f"IoU {0.5 + 0.05 * t:.2f}",
            recall,
            np.mean([c.precision[t, :, 0] for _, c in known], 0),
        )
        for t in (0, 3, 5, 7, 9)
        if known
    ]
    shown = f" (the first {len(by_class)})" if len(by_class) < len(known) else ""
    titles = (f"by class{shown}, IoU 0.5", "mean of all classes, by IoU")
    return charts(
        [
            line_charts.Chart(title, "recall", "precision", lines, y_max=1.02)
            for title, lines in zip(titles, (by_class, by_iou), strict=True)
        ]
    )


def threshold_chart(curves: ThresholdCurves) -> str:
    """Precision, recall and F1 of all classes together against the score threshold."""
    best, _, _, f1 = curves.best()
    lines = [
        line_charts.Line(name, curves.thresholds, values)
        for name, values in (("precision", curves.precision), ("recall", curves.recall),
                             ("F1", curves.f1))
    ]  # fmt: skip
    title = f"F1 {f1:.3f} at score {best:.2f}, IoU 0.5"
    return charts([line_charts.Chart(title, "score threshold", "all classes", lines, y_max=1.02)])


def charts(drawn: Sequence[line_charts.Chart]) -> str:
    """Each chart as a picture of its own, which a narrow page puts below each other."""
    return "".join(
        chart(line_charts.draw_charts([one], size=CHART_SIZE), f"{one.y_label}: {one.title}")
        for one in drawn
    )


def error_table(names: Sequence[str], scenes: Sequence[Scene], verdicts: Sequence[Verdicts]) -> str:
    """Counts of each kind of detection and of missed objects, by class."""
    labels = np.concatenate([scene.labels for scene in scenes])
    kinds = np.concatenate([verdict.kinds for verdict in verdicts])
    gt_labels = np.concatenate([scene.gt_labels for scene in scenes])
    missed = np.concatenate([verdict.is_missed for verdict in verdicts])
    rows = []
    for label, name in [*enumerate(names), (None, "all")]:
        mine = labels >= 0 if label is None else labels == label
        objects = gt_labels >= 0 if label is None else gt_labels == label
        counts = [int((mine & (kinds == k)).sum()) for k in range(len(KINDS))]
        rows.append([name, int(objects.sum()), *counts, int((objects & missed).sum())])
    return table(["class", "objects", *KINDS, "missed"], rows)


def confusion_map(
    names: Sequence[str], scenes: Sequence[Scene], verdicts: Sequence[Verdicts]
) -> str:
    """Objects (rows) against detections (columns); of many classes, those with most confusion."""
    counts = error_analysis.confusion_matrix(scenes, verdicts, len(names))
    shown, text = np.arange(len(names)), ""
    if len(names) > MAX_MAPPED:
        wrong = counts - np.diag(np.diag(counts))
        mistakes = (wrong.sum(0) + wrong.sum(1))[:-1]
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:MAX_MAPPED])
        text = note(f"The {MAX_MAPPED} of {len(names)} classes with the most mistakes.")
    chosen = [*shown.tolist(), len(names)]
    labels = [*(names[i] for i in shown.tolist()), "nothing"]
    png = heat_map.draw_heat_map(
        counts[np.ix_(chosen, chosen)],
        labels,
        labels,
        row_label="object",
        column_label="detected as",
    )
    return text + chart(png, "share of the objects of each class by what they are detected as")
