"""The report of a run that people look at: one self-contained HTML file; see `report_command`."""

import html
import json
from pathlib import Path

from etils import epath

from atss_jax.drawing import curves as line_charts
from atss_jax.drawing.html_page import page
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import coco_metrics, precision_curves, unique_names
from atss_jax.evaluation.coco_results import coco_to_detections
from atss_jax.evaluation.error_analysis import judge_image, threshold_curves
from atss_jax.files import write_whole
from atss_jax.run import (
    build,
    classes,
    given_run,
    recipe_io,
    report_assignment,
    report_header,
    report_pictures,
    report_sections,
)
from atss_jax.run.recipe import Recipe
from atss_jax.run.scenes import gather_scenes
from atss_jax.runtime.metric_writer import read_rows


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the report of an evaluation; returns the path of the file.

    Args:
      folder: a workdir, or one of the evaluations in its `eval`.
      output: of the file; `report.html` in the folder by default.

    Raises:
      UserError: there is no evaluated run.
    """
    output = output or folder / "report.html"
    write_whole(output, make_report(folder))
    return output


def make_report(folder: Path) -> str:
    """The HTML text of a report.

    Args:
      folder: a workdir, or one of the evaluations in its `eval`.

    Raises:
      UserError: no such folder, or it holds no configuration or no detections, or those of another
        split.
    """
    folder = folder.resolve()  # a path such as "." has no parents
    given_run.check_report(folder)
    recipe = recipe_io.read_recipe(folder / "config.json")
    about = report_header.read_about(folder, recipe)
    workdir = folder.parent.parent if folder.parent.name == "eval" else folder
    dataset = build.load_dataset(recipe, "val")
    if trained := classes.read_classes(epath.Path(workdir)):
        dataset = classes.in_order_of(dataset, trained[0], f"the network in {workdir}")
    results = dataset.inside_results(json.loads((folder / "detections.json").read_text()))
    truth = dataset.coco_ground_truth()
    names, ids = list(dataset.class_names), list(dataset.category_ids)
    metrics = coco_metrics(
        *(truth, results),
        class_names=names,
        category_ids=ids,
        max_detections=recipe.eval.max_detections,
    )
    names = unique_names(names, ids)
    curves = precision_curves(truth, results, category_ids=ids)
    found = coco_to_detections(results, dataset.image_ids, ids)
    by_threshold = threshold_curves(gather_scenes(dataset, found, 0.0))
    threshold, precision, recall, f1 = by_threshold.best()
    shown = gather_scenes(dataset, found, threshold)
    verdicts = [judge_image(scene) for scene in shown]
    rows = read_rows(workdir / "metrics.jsonl")
    worst, random = report_pictures.whole_images(dataset, shown, verdicts, names)
    title = workdir.resolve().name
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *report_header.header(workdir, recipe, dataset, about, len(results)),
        "<h2>Metrics</h2>", report_sections.metrics_table(metrics, names),
        "<h2>Precision and recall</h2>", report_sections.precision_charts(names, curves),
        "<h2>Which score threshold</h2>",
        f"<p>F1 is highest at score &ge; {threshold:.2f}: precision {precision:.3f}, recall "
        f"{recall:.3f}, F1 {f1:.3f} (IoU 0.5). Everything below is at this threshold.</p>",
        report_sections.threshold_chart(by_threshold),
        "<h2>AP by class and object size</h2>",
        report_sections.class_table(dataset, names, curves),
        report_sections.size_table(dataset, metrics),
        "<h2>Kinds of mistakes</h2>", report_sections.error_table(names, shown, verdicts),
        "<h2>Confusion</h2>", report_sections.confusion_map(names, shown, verdicts),
        "<h2>Images with most mistakes</h2>", worst,
        "<h2>Random images</h2>", random,
        "<h2>Most confident false positives</h2>",
        report_pictures.false_positives(dataset, shown, verdicts, names),
        "<h2>Largest missed objects</h2>",
        report_pictures.missed_objects(dataset, shown, verdicts, names),
        "<h2>Assignment on training images</h2>", _assignment(recipe),
        "<h2>Training</h2>", report_sections.charts(line_charts.run_charts(rows)),
    ]  # fmt: skip
    return page(title, parts)


def _assignment(recipe: Recipe) -> str:
    """The table, or why there is none: the training images may be elsewhere."""
    try:
        return report_assignment.assignment_table(recipe)
    except UserError as error:
        return f"<p class=note>The training images are not at hand: {html.escape(str(error))}</p>"
