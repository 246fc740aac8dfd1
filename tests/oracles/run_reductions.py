"""Sums of losses, norms and gradients over the shapes of recipes; prints errors as JSON.

Usage: run_reductions.py NAME..., names of recipes. Sums of one compiled program are compared with
float64 sums of its terms, which another program computes. Two images: a device's share of 16 on 8.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from atss_jax.geometry.anchors import make_grid
from atss_jax.models import layers
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import recipe_files, recipe_io
from atss_jax.run.recipe import Recipe
from atss_jax.structures import HeadOutputs, Targets
from atss_jax.training import losses as losses_lib
from atss_jax.training import optim
from atss_jax.training.box_losses import BOX_LOSSES
from atss_jax.training.loss_counts import count_normalizers

BATCH = 2
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


def loss_errors(recipe: Recipe, bucket: tuple[int, int]) -> dict[str, float]:
    """Of the three loss sums and of the counts."""
    rng = np.random.default_rng(0)
    grid = make_grid(recipe.anchors, bucket)
    losses = losses_lib.make_losses(recipe.loss, recipe.model.regression)
    targets = random_targets(rng, grid)

    def maps(*extra: int) -> Any:
        count = grid.num_per_location
        return tuple(
            rng.standard_normal((BATCH, h, w, count, *extra), np.float32)
            for h, w in grid.level_shapes
        )

    center = None if recipe.model.centerness == "none" else maps()
    outputs: Any = HeadOutputs(maps(NUM_CLASSES), maps(4), center)
    if recipe.model.regression == "point":
        outputs = outputs._replace(box_regression=tuple(map(np.abs, outputs.box_regression)))
    sums = jax.jit(lambda o, t: losses.sums(o, t, grid))(outputs, targets)
    norms = jax.jit(count_normalizers)(targets)

    flat = [x.reshape(BATCH, -1, NUM_CLASSES) for x in outputs.cls_logits]
    ends = np.cumsum(grid.num_per_level)[:-1]
    masks = np.split(targets.is_ignored, ends, 1)
    parts = zip(flat, np.split(targets.labels, ends, 1), masks, strict=True)
    focal = jax.jit(lambda x, y: losses_lib.focal_loss(x, y, alpha=0.25, gamma=2.0))
    cls = sum(
        np.sum(np.where(ignored[..., None], 0, focal(logits, labels)), dtype=np.float64)
        for logits, labels, ignored in parts
    )
    of_pair = BOX_LOSSES[recipe.loss.box_loss]
    terms = jax.jit(lambda o, t: of_pair(losses._pair(o.box_regression, t, grid)))
    box = np.where(targets.is_positive, terms(outputs, targets), 0)
    if losses._is_weighted(center is not None):
        box = box * targets.centerness
    result = {
        "cls": error(sums.cls, np.asarray(cls)),
        "box": error(sums.box, np.sum(box, dtype=np.float64)),
        "positives": error(norms.num_positives, np.sum(targets.is_positive)),
        "weight_sum": error(norms.box_weight_sum, np.sum(targets.centerness, dtype=np.float64)),
    }
    if center is not None:
        x = np.concatenate([c.reshape(BATCH, -1) for c in center], 1).astype(np.float64)
        entropy = np.logaddexp(0, x) - x * targets.centerness
        result["centerness"] = error(sums.centerness, np.sum(entropy[targets.is_positive]))
    return result


def norm_shapes(recipe: Recipe) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(shape of the map, summed axes) of every normalisation of the recipe's network."""
    shapes = set()
    own_sums = layers._own_sums

    def record(x: Any, mask: Any, axes: tuple[int, ...]) -> Any:
        shapes.add((x.shape, axes))
        return own_sums(x, mask, axes)

    network = DetectorNetwork(recipe.model, NUM_CLASSES, recipe.anchors.num_per_location)
    with mock.patch.object(layers, "_own_sums", record):
        for bucket in recipe.data.buckets:
            variables = jax.eval_shape(lambda b=bucket: init_variables(network, b, 0))
            images = jax.ShapeDtypeStruct((BATCH, *bucket, 3), jnp.float32)
            sizes = jax.ShapeDtypeStruct((BATCH, 2), jnp.int32)
            jax.eval_shape(
                lambda v, i, s: network.apply(v, i, s, train=True, mutable=["batch_stats"]),
                variables, images, sizes,
            )  # fmt: skip
    return {(shape, axes) for shape, axes in shapes if shape[0] == BATCH}


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


def all_errors(names: list[str]) -> Iterator[dict[str, float]]:
    """Of every different case among the recipes."""
    done: set[Any] = set()
    for name in names:
        recipe = recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())
        cases: list[tuple[Callable[..., dict[str, float]], tuple[Any, ...], Any]] = [
            *((loss_errors, (recipe, b), (recipe.loss, recipe.anchors, recipe.model.centerness, b))
              for b in recipe.data.buckets),
            *((norm_errors, case, case) for case in sorted(norm_shapes(recipe))),
            (gradient_error, (recipe,), recipe.model),
        ]  # fmt: skip
        for function, arguments, key in cases:
            if (function, key) not in done:
                done.add((function, key))
                yield function(*arguments)


def main() -> None:
    """Prints the largest error of every kind of sum and how many cases there were."""
    worst: dict[str, float] = {}
    count = 0
    for errors in all_errors(sys.argv[1:]):
        count += 1
        worst = {k: max(worst.get(k, 0.0), errors.get(k, 0.0)) for k in {*worst, *errors}}
    print(json.dumps({"cases": count, **worst}, sort_keys=True))


if __name__ == "__main__":
    main()
