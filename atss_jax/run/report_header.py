"""The head of a report: what ran, when, for how long, on what, and how its recipe differs."""

import dataclasses
from pathlib import Path

import jax
from etils import epath

from atss_jax.data.dataset import DetectionDataset
from atss_jax.drawing import html_page
from atss_jax.errors import UserError
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import evaluation_folder, recipe_changes, recipe_files, recipe_io, workdir_files
from atss_jax.run.recipe import Recipe

PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")
"""Fields of group "data" that a folder of data stands for."""


def header(
    workdir: Path,
    recipe: Recipe,
    dataset: DetectionDataset,
    evaluated: str,
    num_detections: int,
) -> list[str]:
    """The facts of a run, and the fields that it changed.

    Args:
      workdir: folder of the run.
      recipe: of the run.
      dataset: the evaluated set.
      evaluated: what the detections are of, from `read_about`.
      num_detections: of all images.
    """
    objects = int(dataset.num_boxes.sum())
    data, model = recipe.data, recipe.model
    sizes = ", ".join(f"{h} x {w}" for h, w in data.buckets)
    about = [
        ("data", f"{evaluation_folder.data_name(recipe, dataset)}: "
                 f"{dataset.num_records} images, {objects} objects, "
                 f"{len(dataset.class_names)} classes; {num_detections} detections"),
        ("evaluated", evaluated),
        ("network", f"{model.backbone} x {model.width:g}, {_parameters(recipe, dataset):,} "
                    f"parameters; assigner {recipe.assigner.name}"),
        ("image size", f"short side {data.short_side}, long side at most {data.max_long_side} px, "
                       f"in {sizes}"),
        ("weights at the start", model.init_from or "random"),
        *_result(workdir),
    ]  # fmt: skip
    name, changes = nearest_recipe(_with_root_of_run(workdir, recipe))
    lines = [line.strip().removeprefix("config.").split(": ", 1) for line in changes]
    fields = html_page.facts([(field, change) for field, change in lines])
    return [
        html_page.facts(about),
        f"<details><summary>{len(lines)} fields differ from the recipe {name}</summary>"
        f"{fields}</details>",
    ]


def read_about(folder: Path, recipe: Recipe) -> str:
    """What the detections in a folder are of: step, split, test-time augmentation.

    Raises:
      UserError: the evaluation had no metrics, or was of another split than the recipe names now.
    """
    path = folder / "result.json"
    result = workdir_files.read_result(epath.Path(path))
    split = evaluation_folder.split_name(recipe)
    if recipe.eval.format_only:
        raise UserError(f"{folder}: detections of a split without annotations: nothing to compare.")
    if result.get("split", split) != split:
        raise UserError(
            f"{path}: the detections are of {result['split']!r}, config.json names {split!r}. Run "
            "`atss eval`, and make the report of its folder."
        )
    step = result.get("step", "unknown")
    augmentation = result.get("test_time_augmentation", recipe.eval.multiscale)
    chosen = f" ({result['checkpoint']})" if "checkpoint" in result else ""
    return f"step {step}{chosen}, split {split}, test-time augmentation {augmentation}"


def nearest_recipe(recipe: Recipe) -> tuple[str, list[str]]:
    """The packaged recipe with the fewest differing fields, and lines about these."""
    found = []
    for name in recipe_files.packaged_names():
        try:
            values = recipe_files.load_recipe(name).to_dict()
        except UserError:  # a recipe that is nothing without its argument
            continue
        base = recipe_io.recipe_from_mapping(values)
        changes = [str(change) for change in recipe_changes.changes(base, recipe)]
        found.append((len(changes), name, changes))
    _, name, changes = min(found)
    return name, changes


def _with_root_of_run(workdir: Path, recipe: Recipe) -> Recipe:
    """The recipe of an evaluation with the folder of data that its run had, for its paths.

    Of other data, the evaluation holds four paths that stand for the folder; nobody gave them.
    """
    path = workdir / "config.json"
    root = recipe_io.read_recipe(path).data.root if path.exists() else ""
    if recipe.data.root or not root:
        return recipe
    empty = dict.fromkeys(PATHS, "")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=root, **empty))


def _parameters(recipe: Recipe, dataset: DetectionDataset) -> int:
    network = DetectorNetwork(
        recipe.model, len(dataset.class_names), recipe.anchors.num_per_location
    )
    shapes = jax.eval_shape(lambda: init_variables(network, recipe.data.buckets[0], 0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def _result(workdir: Path) -> list[tuple[str, str]]:
    """What result.json says; nothing before a run has ended."""
    result = workdir_files.read_result(epath.Path(workdir) / "result.json")
    if not result:
        return [("training", "not ended")]
    minutes = result["wall_seconds"] / 60
    facts = [
        ("training", f"{result['steps']:,} steps in {minutes:.1f} minutes, "
                     f"{result['images_per_s']:.1f} images per second"),
        ("device", f"{result['num_devices']} x {result['device_kind']}, "
                   f"{result['num_processes']} process(es)"),
        ("versions", ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
    ]  # fmt: skip
    if "ended" in result:
        facts.insert(0, ("ended", result["ended"]))
    return facts
