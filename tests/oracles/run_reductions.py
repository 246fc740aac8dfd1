"""Sums of losses, norms and gradients over the shapes of recipes; prints errors as JSON.

Usage: run_reductions.py [NAME...], names of recipes; none for all of them. Sums of one compiled
program are compared with NumPy's float64 sums of its terms, which single operations compute. Two
images: a device's share of 16 on 8.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import table_rows
from atss_jax.geometry.anchors import make_grid
from atss_jax.models import layers
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.structures import HeadOutputs, Targets
from atss_jax.training import losses as losses_lib
from atss_jax.training import optim
from atss_jax.training.box_losses import BOX_LOSSES

BATCH = 2
TEMPLATES = ("hardware", "mini", "paper_table8")
"""Recipes that need an argument."""
NUM_CLASSES = 80


def error(found: Any, right: Any, size: Any = None) -> float:
    """Largest relative error of sums; `size` are the sums of absolute values where terms cancel."""
    return float(
        np.max(np.abs(np.asarray(found) - right) / (np.abs(right) if size is None else size))
    )


def random_targets(rng: np.random.Generator, grid: Any) -> Targets:
    """A hundredth of all anchors is positive, a tenth ignored."""
    kind = rng.random((BATCH, grid.num_anchors))
    is_positive = kind < 0.01
    labels = np.where(is_positive, rng.integers(0, NUM_CLASSES, kind.shape), -1).astype(np.int32)
    boxes = (grid.boxes() + rng.uniform(-3, 3, (*kind.shape, 4))).astype(np.float32)
    centerness = np.where(is_positive, rng.uniform(0.1, 1, kind.shape), 0).astype(np.float32)
    fields: Any = (labels, boxes, centerness, is_positive, kind > 0.9)
    return Targets(*fields)


def exact_sum(x: Any, axis: Any = None, dtype: Any = None, **_: Any) -> np.ndarray:
    """Like `jnp.sum`, by NumPy in float64."""
    return np.sum(np.asarray(x), axis=axis, dtype=np.float64)


def loss_errors(recipe: Recipe, outputs: HeadOutputs, bucket: tuple[int, int]) -> dict[str, float]:
    """Of all loss sums and counts: one program against single operations with exact sums."""
    rng = np.random.default_rng(0)
    grid = make_grid(recipe.anchors, bucket)
    losses = losses_lib.make_losses(recipe.loss, recipe.model.regression)
    targets = random_targets(rng, grid)
    outputs = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), outputs)
    if recipe.model.regression == "point":
        outputs = outputs._replace(box_regression=tuple(map(np.abs, outputs.box_regression)))
    functions = (losses.sums, losses.count)
    found = [jax.jit(f, static_argnums=2)(outputs, targets, grid) for f in functions]
    with mock.patch.object(jnp, "sum", exact_sum):
        right = [f(outputs, targets, grid) for f in functions]
    return {
        name: error(value, np.asarray(wanted))
        for mine, exact in zip(found, right, strict=True)
        for name, value, wanted in zip(mine._fields, mine, exact, strict=True)
        if np.any(np.asarray(wanted))
    }


def shapes_of_network(
    recipe: Recipe, bucket: tuple[int, int]
) -> tuple[HeadOutputs, set[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Shapes of the head's outputs, and (shape of the map, summed axes) of every normalisation."""
    shapes = set()
    own_sums = layers._own_sums

    def record(x: Any, mask: Any, axes: tuple[int, ...]) -> Any:
        shapes.add((x.shape, axes))
        return own_sums(x, mask, axes)

    network = DetectorNetwork(recipe.model, NUM_CLASSES, recipe.anchors.num_per_location)
    images = jax.ShapeDtypeStruct((BATCH, *bucket, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((BATCH, 2), jnp.int32)
    with mock.patch.object(layers, "_own_sums", record):
        outputs, _ = jax.eval_shape(
            lambda i, s: network.init_with_output(jax.random.key(0), i, s, train=True),
            images,
            sizes,
        )
    return outputs, shapes


def norm_errors(shape: tuple[int, ...], axes: tuple[int, ...]) -> dict[str, float]:
    """Of sums, sums of squares and counts over a map whose last quarter of columns is padding."""
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    mask = np.broadcast_to(np.arange(shape[2]) < max(1, shape[2] * 3 // 4), shape[:3])
    total, squares, count = jax.jit(lambda x, m: layers._own_sums(x, m, axes))(x, mask)
    own = np.where(mask[..., None], x, 0).astype(np.float64)
    return {
        "norm_sum": error(total, own.sum(axes), np.abs(own).sum(axes)),
        "norm_squares": error(squares, np.square(own).sum(axes)),
        "norm_count": error(count, mask.sum(axes)),
    }


def gradient_error(recipe: Recipe) -> dict[str, float]:
    """Of the global norm of a tree like the recipe's parameters."""
    network = DetectorNetwork(recipe.model, NUM_CLASSES, recipe.anchors.num_per_location)
    shapes = jax.eval_shape(lambda: init_variables(network, recipe.data.buckets[0], 0))["params"]
    rng = np.random.default_rng(2)
    tree = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)
    frozen = jax.tree.map(lambda s: False, shapes)
    found = jax.jit(lambda t: optim.global_norm(t, frozen))(tree)
    squares = sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree))
    return {"gradient_norm": error(found, np.sqrt(squares))}


def all_errors(recipes: list[Recipe]) -> Iterator[dict[str, float]]:
    """Of every different case among the recipes."""
    done: set[Any] = set()

    def is_new(*case: Any) -> bool:
        is_new = case not in done
        done.add(case)
        return is_new

    for recipe in recipes:
        if is_new("gradient", recipe.model):
            yield gradient_error(recipe)
        for bucket in recipe.data.buckets:
            if not is_new("all", bucket, recipe.model, recipe.anchors, recipe.loss):
                continue
            outputs, norms = shapes_of_network(recipe, bucket)
            if is_new("losses", bucket, recipe.anchors, recipe.loss, str(outputs)):
                yield loss_errors(recipe, outputs, bucket)
            for case in sorted(norms):
                if is_new("norm", case):
                    yield norm_errors(*case)


def largest(worst: dict[str, float], errors: dict[str, float]) -> dict[str, float]:
    """The larger error of each kind; unlike with max, NaN is the largest."""
    names = {*worst, *errors}
    return {k: float(np.maximum(worst.get(k, 0.0), errors.get(k, 0.0))) for k in names}


def load(name: str) -> Recipe:
    """A packaged recipe."""
    return recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())


def all_recipes() -> list[Recipe]:
    """Every packaged recipe, every row of the tables, their miniatures, and every box loss."""
    names = {name: None for name in recipe_files.packaged_names() if name not in TEMPLATES}
    names |= {row.config: None for row in table_rows.ROWS}
    shallow = {f"mini:{row.config}": None for row in table_rows.ROWS if row.table != "8"}
    recipes = [load(name) for name in (*names, *shallow)]
    base = load("ablations")
    boxes = [name for name in BOX_LOSSES if name != "fcos_giou"]  # the row FCOS has that one
    return [*recipes, *(replace(base, loss=replace(base.loss, box_loss=name)) for name in boxes)]


def main() -> None:
    """Prints the largest error of every kind of sum and how many cases there were."""
    recipes = [load(name) for name in sys.argv[1:]] or all_recipes()
    worst: dict[str, float] = {}
    count = 0
    for errors in all_errors(recipes):
        count += 1
        worst = largest(worst, errors)
    print(json.dumps({"cases": count, **worst}, sort_keys=True))


if __name__ == "__main__":
    main()
