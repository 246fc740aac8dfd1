"""ATSS against Algorithm 1 in plain NumPy, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assigners as oracle

from atss_jax.anchors import AnchorGrid
from atss_jax.assigners import assign_atss
from atss_jax.structures import GroundTruth


def levels_of(grid):
    return [(s, s + n) for s, n in zip(grid.level_starts, grid.num_per_level, strict=True)]


def random_boxes(rng, count, height, width):
    """Boxes in whole px, tiny to image-filling: distances and their ties are exact in float32."""
    x1, y1 = rng.integers(0, width - 1, count), rng.integers(0, height - 1, count)
    sides = 2.0 ** rng.uniform(0, np.log2(max(height, width)), (count, 2))
    x2 = np.minimum(width, x1 + np.maximum(1, sides[:, 0].astype(int)))
    y2 = np.minimum(height, y1 + np.maximum(1, sides[:, 1].astype(int)))
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def ground_truth(boxes, num_slots):
    padded = np.full((num_slots, 4), np.nan, np.float32)
    padded[: len(boxes)] = boxes
    labels = np.arange(num_slots, dtype=np.int32) % 7
    return GroundTruth(jnp.array(padded), jnp.array(labels), jnp.arange(num_slots) < len(boxes))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 9])
def test_equals_algorithm_1(seed, k):
    rng = np.random.default_rng(seed)
    grid = AnchorGrid((128, 192))
    assign = jax.jit(functools.partial(assign_atss, grid, candidates_per_level=k))
    height, width = int(rng.integers(30, 129)), int(rng.integers(30, 193))
    boxes = random_boxes(rng, 12, height, width)
    size = jnp.array([height, width])
    got = assign(size, ground_truth(boxes, 16))
    own = np.array(grid.own_mask(size))
    gt_index, label, *_ = oracle.atss(grid.boxes(), levels_of(grid), own, boxes, k=k, a=1)
    np.testing.assert_array_equal(np.array(got.is_ignored), label == -1)
    np.testing.assert_array_equal(np.array(got.is_positive), label == 1)
    np.testing.assert_array_equal(np.array(got.gt_index), gt_index)
