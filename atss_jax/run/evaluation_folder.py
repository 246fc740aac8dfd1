"""What `--mode=eval` writes: a folder of its own for each split, checkpoint and augmentation.

`WORKDIR/eval/<split>-<step>-<test-time augmentation>/` holds result.json, config.json,
detections.json and pictures. The files of the training are never touched.
"""

import io
import logging
import re
import zipfile
from pathlib import PurePosixPath
from typing import Any

import jax
from etils import epath

from atss_jax.data.dataset import DetectionDataset
from atss_jax.drawing import visualize
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import known_or_none
from atss_jax.evaluation.coco_results import detections_to_coco, write_results
from atss_jax.evaluation.whole_split import Outcome
from atss_jax.files import write_whole
from atss_jax.run import pictures, recipe_io, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.structures import Detections


def split_name(config: Recipe) -> str:
    """What the evaluated split is called: the annotation file without suffix and COCO's prefix.

    "val2017" for "instances_val2017.json", "test-dev2017" for "image_info_test-dev2017.json"; the
    split's own name for other sources.
    """
    data = config.data
    if data.root:
        return "val"
    if data.source != "coco_json":
        return data.val_split
    stem = PurePosixPath(data.val_annotations).stem
    for prefix in ("instances_", "image_info_"):
        stem = stem.removeprefix(prefix)
    return stem or "val"


def data_name(config: Recipe, dataset: DetectionDataset) -> str:
    """What the evaluated data are called: the annotation file where one is named.

    Args:
      config: the recipe, with what was changed for the evaluation.
      dataset: the evaluated set.
    """
    is_file = config.data.source == "coco_json" and not config.data.root
    return config.data.val_annotations if is_file else dataset.name


def about(config: Recipe, step: int) -> dict[str, Any]:
    """What an evaluation is of, for files: split, step, test-time augmentation."""
    return {
        "split": split_name(config),
        "step": step,
        "test_time_augmentation": config.eval.multiscale,
    }


def choose_folder(config: Recipe, workdir: epath.Path, step: int) -> epath.Path:
    """The folder of an evaluation; only an earlier one with the same settings is replaced.

    Others (`eval.nms_iou`, another file of the same name) keep theirs: this one gets a number.

    Args:
      config: the recipe, with what was changed for the evaluation.
      workdir: folder of the run.
      step: of the evaluated checkpoint.
    """
    name = f"{split_name(config)}-{step}-{config.eval.multiscale}"
    name = re.sub(r"[^\w.+-]", "_", name)
    folder, number = workdir / "eval" / name, 1
    while (folder / "config.json").exists() and not _is_same(config, folder):
        number += 1
        folder = workdir / "eval" / f"{name}-{number}"
    return folder


def _is_same(config: Recipe, folder: epath.Path) -> bool:
    """Whether the evaluation in a folder had the same data and settings."""
    try:
        there = recipe_io.read_recipe(folder / "config.json")
    except UserError:
        return False
    return (there.data, there.eval, there.model) == (config.data, config.eval, config.model)


def write_evaluation(
    config: Recipe,
    workdir: epath.Path,
    dataset: DetectionDataset,
    outcome: Outcome,
    step: int,
    checkpoint: str,
) -> epath.Path:
    """Writes an evaluation into its folder, result.json last; returns the folder.

    Args:
      config: the recipe, with what was changed for the evaluation.
      workdir: folder of the run.
      dataset: the evaluated set.
      outcome: of the evaluation.
      step: of the evaluated checkpoint.
      checkpoint: how it was chosen: "last", "best", or the step.
    """
    folder = choose_folder(config, workdir, step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    write_whole(folder / "config.json", recipe_io.recipe_to_json(config))
    count = write_detections(folder, dataset, outcome.detections)
    if not outcome.metrics:
        path = write_submission(folder, split_name(config))
        print(f"{path}: {count} detections to submit, no metrics")
    try:
        shown = min(config.eval.num_pictures, dataset.num_records)
        drawn = pictures.draw_detections(dataset, outcome.detections, shown)
        for number, picture in enumerate(drawn):
            visualize.save_image(folder / f"detections_{number}.jpg", picture)
    except Exception:  # noqa: BLE001 - what people look at must not cost the numbers
        logging.warning("the pictures in %s are not complete", folder, exc_info=True)
    result = {
        **about(config, step),
        "checkpoint": checkpoint,
        "data": data_name(config, dataset),
        "num_images": dataset.num_records,
        "num_detections": count,
        "metrics": known_or_none(outcome.metrics),
        "device_kind": jax.devices()[0].device_kind,
        "versions": workdir_files.versions(),
    }
    workdir_files.write_json(folder / "result.json", result)
    return folder


def write_detections(folder: epath.Path, dataset: DetectionDataset, detections: Detections) -> int:
    """Writes detections.json, COCO's result format; returns how many detections it holds.

    Args:
      folder: where to.
      dataset: the evaluated set.
      detections: of an `Outcome`.
    """
    results = detections_to_coco(detections, dataset.image_ids, dataset.category_ids)
    write_results(folder / "detections.json", dataset.original_results(results))
    return len(results)


def write_submission(folder: epath.Path, name: str) -> epath.Path:
    """Packs detections.json as COCO's evaluation server wants it: one JSON file in a zip.

    Args:
      folder: holds detections.json, gets the zip.
      name: of the split, as the server calls it ("test-dev2017").
    """
    path = folder / f"detections_{name.replace('/', '_')}_atss_results.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{path.stem}.json", (folder / "detections.json").read_text())
    write_whole(path, buffer.getvalue())
    return path
