"""A report of a run that people look at: python scripts/report.py WORKDIR [--output report.html].

One self-contained HTML file: metrics beside the paper's, precision-recall curves, AP by class and
size, error types, confusion, the worst mistakes as thumbnails, assignment statistics and training
curves. It reads the workdir (config.json, metrics.jsonl, detections.json) and the data set of its
configuration, and opens from disk without a network.
"""

import argparse
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atss_jax.assigners.registry import make_assigner
from atss_jax.data.batch_rows import read_image
from atss_jax.data.images import resized_size
from atss_jax.evaluation import error_analysis
from atss_jax.evaluation.coco_metrics import METRICS, coco_metrics, mean_known, precision_curves
from atss_jax.run import build, recipe_io
from atss_jax.runtime.metric_writer import read_rows
from atss_jax.structures import GroundTruth
from html_pieces import COLORS, page, percent, plot, table, thumbnail

PAPER = (39.3, 57.5, 42.8, 24.3, 43.3, 51.3)
"""AP, AP50, AP75, APs, APm, APl of ATSS R-50 on COCO minival (paper, Table 3, last row)."""
THUMBNAILS = 12
"""Of the worst false positives, and of the largest missed objects."""
MAX_ASSIGNED = 200
"""Training images of the assignment statistics."""


def main() -> None:
    """Reads the arguments and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--output", type=Path, help="default: WORKDIR/report.html")
    arguments = parser.parse_args()
    output = arguments.output or arguments.workdir / "report.html"
    try:
        output.write_text(make_report(arguments.workdir))
    except FileNotFoundError as error:
        parser.error(str(error))
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def make_report(workdir: Path) -> str:
    """The HTML text of a run's report.

    Raises:
      FileNotFoundError: the workdir holds no configuration or no detections.
    """
    for name in ("config.json", "detections.json"):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"{workdir / name}: missing. Run --mode=eval on it first.")
    recipe = recipe_io.recipe_from_json((workdir / "config.json").read_text())
    dataset = build.load_dataset(recipe, "val")
    results = json.loads((workdir / "detections.json").read_text())
    truth = dataset.coco_ground_truth()
    names, ids = list(dataset.class_names), list(dataset.category_ids)
    metrics = coco_metrics(truth, results, class_names=names, category_ids=ids)
    curves = precision_curves(truth, results, category_ids=ids)
    images = gather_images(dataset, results)
    threshold, precision, recall, f1 = error_analysis.best_threshold(images)
    shown = [above(image, threshold) for image in images]
    verdicts = [
        error_analysis.judge_image(i["boxes"], i["labels"], i["gt_boxes"], i["gt_labels"])
        for i in shown
    ]
    size = f"{dataset.num_records} images, {sum(len(i['gt_labels']) for i in images)} objects"
    parts = [
        f"<h1>{html.escape(workdir.resolve().name)}</h1>",
        f"<p>{html.escape(dataset.name)}: {size}, {len(results)} detections. Network: "
        f"{html.escape(recipe.model.backbone)}, assigner {html.escape(recipe.assigner.name)}.</p>",
        "<h2>Metrics</h2>", metrics_table(metrics),
        "<h2>Precision and recall</h2>", precision_plots(names, curves),
        "<h2>AP by class and object size</h2>", class_table(names, curves),
        "<h2>Kinds of mistakes</h2>",
        f"<p>At score &ge; {threshold:.2f}, where F1 is highest: precision {precision:.3f}, recall "
        f"{recall:.3f}, F1 {f1:.3f} (IoU 0.5).</p>",
        error_table(names, shown, verdicts),
        "<h2>Confusion</h2>", confusion_table(names, shown, verdicts),
        "<h2>Most confident false positives</h2>", false_positives(dataset, shown, verdicts, names),
        "<h2>Largest missed objects</h2>", missed_objects(dataset, shown, verdicts, names),
        "<h2>Assignment on training images</h2>", assignment_table(recipe),
        "<h2>Training</h2>", training_plots(read_rows(workdir / "metrics.jsonl")),
    ]  # fmt: skip
    return page(workdir.resolve().name, parts)


def gather_images(dataset: Any, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections (best first) and objects of each image as arrays."""
    label_of = {category: label for label, category in enumerate(dataset.category_ids)}
    found: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    images = []
    for record, image_id in enumerate(dataset.image_ids.tolist()):
        mine = sorted(found.get(image_id, []), key=lambda r: -r["score"])
        xywh = np.array([r["bbox"] for r in mine], np.float64).reshape(-1, 4)
        images.append(
            {
                "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
                "labels": np.array([label_of[r["category_id"]] for r in mine], np.int64),
                "scores": np.array([r["score"] for r in mine], np.float64),
                "gt_boxes": dataset.boxes(record).astype(np.float64),
                "gt_labels": dataset.labels(record),
            }
        )
    return images


def above(image: dict[str, Any], threshold: float) -> dict[str, Any]:
    """An image with its detections from a score on."""
    keep = image["scores"] >= threshold
    return {**image, **{k: image[k][keep] for k in ("boxes", "labels", "scores")}}


def metrics_table(metrics: dict[str, float]) -> str:
    """The 12 numbers, and the paper's for orientation."""
    rows = [
        ["this run", *(percent(metrics[name]) for name in METRICS)],
        ["paper: COCO minival, R-50", *PAPER, *["–"] * 6],
    ]
    note = "The paper's row is another data set unless this run is on COCO: for orientation only."
    return table(["%", *METRICS], rows) + f'<p class="note">{note}</p>'


def class_table(names: Sequence[str], curves: Sequence[Any]) -> str:
    """AP of each class at all sizes, and at each."""
    rows = []
    for name, curve in zip(names, curves, strict=True):
        cells = [mean_known(curve.precision[:, :, area]) for area in range(4)]
        at_iou = [mean_known(curve.precision[t, :, 0]) for t in (0, 5)]
        recall = mean_known(curve.recall[:, 0])
        rows.append([name, *(percent(v) for v in (cells[0], *at_iou, *cells[1:], recall))])
    return table(["class", "AP", "AP50", "AP75", "small", "medium", "large", "AR100"], rows)


def precision_plots(names: Sequence[str], curves: Sequence[Any]) -> str:
    """Precision over recall: of each class at IoU 0.5, and of all classes at several IoUs."""
    recall = np.linspace(0, 1, 101)
    known = [
        (n, c) for n, c in zip(names, curves, strict=True) if (c.precision[0, :, 0] > -1).all()
    ]
    by_class = [(n, recall, c.precision[0, :, 0]) for n, c in known[: len(COLORS)]]
    by_iou = [
        (f"IoU {0.5 + 0.05 * t:.2f}", recall, np.mean([c.precision[t, :, 0] for _, c in known], 0))
        for t in (0, 3, 5, 7, 9)
        if known
    ]
    first = plot(by_class, title="Precision by class, IoU 0.5", x_label="recall", y_range=(0, 1))
    second = plot(by_iou, title="All classes, by IoU", x_label="recall", y_range=(0, 1))
    return f'<div class="row">{first}{second}</div>'


def error_table(names: Sequence[str], images: list, verdicts: list) -> str:
    """Counts of each kind of detection and of missed objects, by class."""
    labels = np.concatenate([image["labels"] for image in images])
    kinds = np.concatenate([verdict.kinds for verdict in verdicts])
    gt_labels = np.concatenate([image["gt_labels"] for image in images])
    missed = np.concatenate([verdict.is_missed for verdict in verdicts])
    rows = []
    for label, name in [*enumerate(names), (None, "all")]:
        mine = labels >= 0 if label is None else labels == label
        objects = gt_labels >= 0 if label is None else gt_labels == label
        counts = [int((mine & (kinds == k)).sum()) for k in range(len(error_analysis.KINDS))]
        rows.append([name, int(objects.sum()), *counts, int((objects & missed).sum())])
    return table(["class", "objects", *error_analysis.KINDS, "missed"], rows)


def confusion_table(names: Sequence[str], images: list, verdicts: list) -> str:
    """Objects (rows) against detections (columns)."""
    counts = error_analysis.confusion_matrix(images, verdicts, len(names))
    rows = [[n, *row] for n, row in zip([*names, "nothing"], counts.tolist(), strict=True)]
    return table(["object \\ detected as", *names, "nothing"], rows)


def false_positives(dataset: Any, images: list, verdicts: list, names: Sequence[str]) -> str:
    """Thumbnails of the wrong detections with the highest scores."""
    wrong = [
        (-image["scores"][i], record, i, error_analysis.KINDS[kind])
        for record, (image, verdict) in enumerate(zip(images, verdicts, strict=True))
        for i, kind in enumerate(verdict.kinds)
        if error_analysis.KINDS[kind] != "correct"
    ]
    figures = []
    for score, record, i, kind in sorted(wrong)[:THUMBNAILS]:
        image = images[record]
        caption = f"{names[image['labels'][i]]} {-score:.2f}: {kind}; {dataset.file_name(record)}"
        drawn = [(image["gt_boxes"], (40, 200, 80)), (image["boxes"][i : i + 1], (230, 40, 40))]
        figures.append(thumbnail(read_image(dataset, record), image["boxes"][i], caption, drawn))
    note = '<p class="note">Red: the detection. Green: annotated objects.</p>'
    return note + f'<div class="row">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def missed_objects(dataset: Any, images: list, verdicts: list, names: Sequence[str]) -> str:
    """Thumbnails of the largest objects without a detection."""
    missed = [
        (-float(np.prod(image["gt_boxes"][i, 2:] - image["gt_boxes"][i, :2])), record, int(i))
        for record, (image, verdict) in enumerate(zip(images, verdicts, strict=True))
        for i in np.flatnonzero(verdict.is_missed)
    ]
    figures = []
    for _, record, i in sorted(missed)[:THUMBNAILS]:
        image = images[record]
        caption = f"{names[image['gt_labels'][i]]}; {dataset.file_name(record)}"
        drawn = [(image["boxes"], (60, 120, 240)), (image["gt_boxes"][i : i + 1], (40, 200, 80))]
        figures.append(thumbnail(read_image(dataset, record), image["gt_boxes"][i], caption, drawn))
    note = '<p class="note">Green: the missed object. Blue: detections.</p>'
    return note + f'<div class="row">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def assignment_table(recipe: Any) -> str:
    """Positives of the assigner by object size: how many an object gets, and on which level."""
    dataset = build.load_dataset(recipe, "train")
    template, assigner = build.make_grid(recipe), make_assigner(recipe.assigner)
    assign = jax.jit(assigner, static_argnums=0)
    records = np.linspace(0, dataset.num_records - 1, min(dataset.num_records, MAX_ASSIGNED))
    slots = int(dataset.num_boxes.max(initial=1))
    per_level, areas = [], []
    for record in np.unique(records.round().astype(int)).tolist():
        size = dataset.sizes[record]
        target = resized_size(
            (int(size[0]), int(size[1])), recipe.data.short_side, recipe.data.max_long_side
        )
        fitting = [b for b in recipe.data.buckets if b[0] >= target[0] and b[1] >= target[1]]
        grid = template.with_image_shape(tuple(min(fitting, key=lambda b: b[0] * b[1])))
        count = len(dataset.labels(record))
        boxes = np.zeros((slots, 4), np.float32)
        boxes[:count] = dataset.boxes(record) * np.tile((np.array(target) / size)[::-1], 2)
        truth = GroundTruth(boxes, np.zeros(slots, np.int32), np.arange(slots) < count)
        found = jax.device_get(assign(grid, np.array(target, np.int32), truth))
        positives = np.zeros((slots, grid.num_levels), int)
        level = np.repeat(np.arange(grid.num_levels), grid.num_per_level)
        chosen = found.is_positive
        np.add.at(positives, (found.gt_index[chosen], level[chosen]), 1)
        per_level.append(positives[:count])
        areas.append(np.prod(boxes[:count, 2:] - boxes[:count, :2], axis=1))
    counts, area = np.concatenate(per_level), np.concatenate(areas)
    per_object = counts.sum(1)
    rows = []
    for name, low, high in (
        ("small", 0, 32**2),
        ("medium", 32**2, 96**2),
        ("large", 96**2, np.inf),
    ):
        mine = (area >= low) & (area < high)
        if mine.any():
            share = counts[mine].sum(0) / max(counts[mine].sum(), 1)
            rows.append(
                [name, int(mine.sum()), f"{per_object[mine].mean():.1f}",
                 percent((per_object[mine] == 0).mean()), *(percent(s) for s in share)]
            )  # fmt: skip
    header = ["size in the network", "objects", "positives each", "% without"]
    return table([*header, *(f"% on P{level}" for level in range(3, 8))], rows)


def training_plots(rows: list[dict[str, Any]]) -> str:
    """Loss and AP over the steps."""

    def series(key, name):
        found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        steps, values = np.array(found, float).reshape(-1, 2).T
        return name, steps, values

    losses = [series(key, key) for key in ("loss", "loss_cls", "loss_box", "loss_centerness")]
    quality = [series(f"eval/{name}", name) for name in ("AP", "AP50", "AP75")]
    first = plot(losses, title="Loss", x_label="step")
    second = plot(quality, title="Validation", x_label="step", y_range=(0, 1))
    return f'<div class="row">{first}{second}</div>'


if __name__ == "__main__":
    main()
