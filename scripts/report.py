"""A report of a run that people look at: python scripts/report.py FOLDER [--output report.html].

FOLDER is a workdir (the last evaluation of the training), or one of the evaluations in its `eval`.
One self-contained HTML file: metrics beside the paper's, precision-recall curves, AP by class and
size, error types, confusion, the worst mistakes as thumbnails, assignment statistics and training
curves. It reads the folder (config.json, result.json, detections.json) and the data set of its
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

from atss_jax.assigners.registry import make_assigner, needs_predictions
from atss_jax.data.batch_plan import choose_bucket
from atss_jax.data.batch_rows import read_image
from atss_jax.data.images import resized_size
from atss_jax.drawing import curves as line_charts
from atss_jax.drawing.palette import DETECTION_COLOR, LINE_COLORS, MISTAKE_COLOR, OBJECT_COLOR
from atss_jax.errors import UserError
from atss_jax.evaluation import error_analysis
from atss_jax.evaluation.coco_metrics import (
    METRICS,
    ClassCurves,
    coco_metrics,
    mean_known,
    precision_curves,
    unique_names,
)
from atss_jax.evaluation.coco_results import coco_to_detections, with_min_score
from atss_jax.evaluation.error_analysis import KINDS, Scene, Verdicts
from atss_jax.files import write_whole
from atss_jax.geometry.anchors import make_grid
from atss_jax.run import build, evaluation_folder, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.runtime.metric_writer import read_rows
from atss_jax.structures import Detections, GroundTruth
from html_pieces import chart, page, percent, table, thumbnail

PAPER = (39.3, 57.5, 42.8, 24.3, 43.3, 51.3)
"""AP, AP50, AP75, APs, APm, APl of ATSS R-50 on COCO minival (paper, Table 3, last row)."""
THUMBNAILS = 12
"""Of the worst false positives, and of the largest missed objects."""
MAX_ASSIGNED = 200
"""Training images of the assignment statistics."""


def main() -> None:
    """Reads the arguments and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a workdir, or WORKDIR/eval/NAME")
    parser.add_argument("--output", type=Path, help="default: FOLDER/report.html")
    arguments = parser.parse_args()
    output = arguments.output or arguments.folder / "report.html"
    try:
        write_whole(output, make_report(arguments.folder))
    except UserError as error:
        parser.error(str(error))
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def make_report(folder: Path) -> str:
    """The HTML text of a report.

    Args:
      folder: a workdir, or one of the evaluations in its `eval`.

    Raises:
      UserError: the folder holds no configuration or no detections, or those of another split.
    """
    for name in ("config.json", "detections.json"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing. Run --mode=eval on it first.")
    recipe = recipe_io.read_recipe(folder / "config.json")
    about = read_about(folder, recipe)
    workdir = folder.parent.parent if folder.parent.name == "eval" else folder
    dataset = build.load_dataset(recipe, "val")
    results = dataset.inside_results(json.loads((folder / "detections.json").read_text()))
    truth = dataset.coco_ground_truth()
    names, ids = list(dataset.class_names), list(dataset.category_ids)
    metrics = coco_metrics(truth, results, class_names=names, category_ids=ids)
    names = unique_names(names, ids)
    curves = precision_curves(truth, results, category_ids=ids)
    found = coco_to_detections(results, dataset.image_ids, ids)
    scenes = gather_scenes(dataset, found, 0.0)
    threshold, precision, recall, f1 = error_analysis.best_threshold(scenes)
    shown = gather_scenes(dataset, found, threshold)
    verdicts = [error_analysis.judge_image(scene) for scene in shown]
    size = f"{dataset.num_records} images, {sum(len(s.gt_labels) for s in scenes)} objects"
    parts = [
        f"<h1>{html.escape(workdir.resolve().name)}</h1>",
        f"<p>{html.escape(about)}.</p>",
        f"<p>{html.escape(dataset.name)}: {size}, {len(results)} detections. Network: "
        f"{html.escape(recipe.model.backbone)}, assigner {html.escape(recipe.assigner.name)}.</p>",
        "<h2>Metrics</h2>", metrics_table(metrics),
        "<h2>Precision and recall</h2>", precision_charts(names, curves),
        "<h2>AP by class and object size</h2>", class_table(names, curves),
        "<h2>Kinds of mistakes</h2>",
        f"<p>At score &ge; {threshold:.2f}, where F1 is highest: precision {precision:.3f}, recall "
        f"{recall:.3f}, F1 {f1:.3f} (IoU 0.5).</p>",
        error_table(names, shown, verdicts),
        "<h2>Confusion</h2>", confusion_table(names, shown, verdicts),
        "<h2>Most confident false positives</h2>", false_positives(dataset, shown, verdicts, names),
        "<h2>Largest missed objects</h2>", missed_objects(dataset, shown, verdicts, names),
        "<h2>Assignment on training images</h2>", assignment_table(recipe),
        "<h2>Training</h2>", training_chart(read_rows(workdir / "metrics.jsonl")),
    ]  # fmt: skip
    return page(workdir.resolve().name, parts)


def read_about(folder: Path, recipe: Recipe) -> str:
    """What the detections in a folder are of: step, split, test-time augmentation.

    Raises:
      UserError: the evaluation had no metrics, or was of another split than the recipe names now.
    """
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    split = evaluation_folder.split_name(recipe)
    if recipe.eval.format_only:
        raise UserError(f"{folder}: detections of a split without annotations: nothing to compare.")
    if result.get("split", split) != split:
        raise UserError(
            f"{path}: the detections are of {result['split']!r}, config.json names {split!r}. Run "
            "--mode=eval, and make the report of its folder."
        )
    step = result.get("step", "unknown")
    augmentation = result.get("test_time_augmentation", recipe.eval.multiscale)
    chosen = f" ({result['checkpoint']})" if "checkpoint" in result else ""
    return f"step {step}{chosen}, split {split}, test-time augmentation {augmentation}"


def gather_scenes(dataset: Any, detections: Detections, threshold: float) -> list[Scene]:
    """Detections from a score on, best first, and objects of each image.

    Args:
      dataset: the evaluated set.
      detections: [N, D]; row i is record i.
      threshold: lowest score.
    """
    scenes = []
    for record in range(dataset.num_records):
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


def metrics_table(metrics: dict[str, float]) -> str:
    """The 12 numbers, and the paper's for orientation."""
    rows = [
        ["this run", *(percent(metrics[name]) for name in METRICS)],
        ["paper: COCO minival, R-50", *PAPER, *["–"] * 6],
    ]
    note = "The paper's row is another data set unless this run is on COCO: for orientation only."
    return table(["%", *METRICS], rows) + f'<p class="note">{note}</p>'


def class_table(names: Sequence[str], curves: Sequence[ClassCurves]) -> str:
    """AP of each class at all sizes, and at each."""
    rows = []
    for name, curve in zip(names, curves, strict=True):
        cells = [mean_known(curve.precision[:, :, area]) for area in range(4)]
        at_iou = [mean_known(curve.precision[t, :, 0]) for t in (0, 5)]
        recall = mean_known(curve.recall[:, 0])
        rows.append([name, *(percent(v) for v in (cells[0], *at_iou, *cells[1:], recall))])
    return table(["class", "AP", "AP50", "AP75", "small", "medium", "large", "AR100"], rows)


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
    return chart(
        line_charts.draw_charts(
            [
                line_charts.Chart(title, "recall", "precision", lines, y_max=1.02)
                for title, lines in zip(titles, (by_class, by_iou), strict=True)
            ]
        ),
        "precision over recall",
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


def confusion_table(
    names: Sequence[str], scenes: Sequence[Scene], verdicts: Sequence[Verdicts]
) -> str:
    """Objects (rows) against detections (columns)."""
    counts = error_analysis.confusion_matrix(scenes, verdicts, len(names))
    rows = [[n, *row] for n, row in zip([*names, "nothing"], counts.tolist(), strict=True)]
    return table(["object \\ detected as", *names, "nothing"], rows)


def false_positives(
    dataset: Any, scenes: Sequence[Scene], verdicts: Sequence[Verdicts], names: Sequence[str]
) -> str:
    """Thumbnails of the wrong detections with the highest scores."""
    wrong = [
        (-scene.scores[i], record, i, KINDS[kind])
        for record, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True))
        for i, kind in enumerate(verdict.kinds)
        if KINDS[kind] != "correct"
    ]
    figures = []
    for score, record, i, kind in sorted(wrong)[:THUMBNAILS]:
        scene = scenes[record]
        caption = f"{names[scene.labels[i]]} {-score:.2f}: {kind}; {dataset.file_name(record)}"
        drawn = [(scene.gt_boxes, OBJECT_COLOR), (scene.boxes[i : i + 1], MISTAKE_COLOR)]
        figures.append(thumbnail(read_image(dataset, record), scene.boxes[i], caption, drawn))
    note = '<p class="note">Red: the detection. Green: annotated objects.</p>'
    return note + f'<div class="row">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def missed_objects(
    dataset: Any, scenes: Sequence[Scene], verdicts: Sequence[Verdicts], names: Sequence[str]
) -> str:
    """Thumbnails of the largest objects without a detection."""
    missed = [
        (-float(np.prod(scene.gt_boxes[i, 2:] - scene.gt_boxes[i, :2])), record, int(i))
        for record, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True))
        for i in np.flatnonzero(verdict.is_missed)
    ]
    figures = []
    for _, record, i in sorted(missed)[:THUMBNAILS]:
        scene = scenes[record]
        caption = f"{names[scene.gt_labels[i]]}; {dataset.file_name(record)}"
        drawn = [(scene.boxes, DETECTION_COLOR), (scene.gt_boxes[i : i + 1], OBJECT_COLOR)]
        figures.append(thumbnail(read_image(dataset, record), scene.gt_boxes[i], caption, drawn))
    note = '<p class="note">Green: the missed object. Blue: detections.</p>'
    return note + f'<div class="row">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def assignment_table(recipe: Any) -> str:
    """Positives of the assigner by object size: how many an object gets, and on which level."""
    if needs_predictions(make_assigner(recipe.assigner)):
        return "<p>None: the assigner needs predictions.</p>"
    dataset = build.load_dataset(recipe, "train")
    assigner = make_assigner(recipe.assigner)
    assign = jax.jit(assigner, static_argnums=0)
    records = np.linspace(0, dataset.num_records - 1, min(dataset.num_records, MAX_ASSIGNED))
    slots = int(dataset.num_boxes.max(initial=1))
    per_level, areas = [], []
    for record in np.unique(records.round().astype(int)).tolist():
        size = dataset.sizes[record]
        target = resized_size(
            (int(size[0]), int(size[1])), recipe.data.short_side, recipe.data.max_long_side
        )
        bucket = choose_bucket(target, recipe.data.buckets)
        if bucket is None:
            continue  # training would refuse it
        grid = make_grid(recipe.anchors, bucket)
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


def training_chart(rows: list[dict[str, Any]]) -> str:
    """Loss and AP over the steps."""
    return chart(line_charts.draw_charts(line_charts.run_charts(rows)), "losses and AP by step")


if __name__ == "__main__":
    main()
