"""Assignment statistics of a report: how many positives objects get, by size and level."""

import jax
import numpy as np

from atss_jax.assigners.registry import make_assigner, needs_predictions
from atss_jax.data.batch_plan import choose_bucket
from atss_jax.data.images import resized_size
from atss_jax.drawing.html_page import percent, table
from atss_jax.geometry.anchors import make_grid
from atss_jax.run import build
from atss_jax.run.recipe import Recipe
from atss_jax.structures import GroundTruth

MAX_ASSIGNED = 200
"""Training images of the statistics."""


def assignment_table(recipe: Recipe) -> str:
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
