"""Targets: values, no gradient, and no communication when sharded."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from atss_jax.assigners import ASSIGNERS, assign_atss
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import Assignment
from atss_jax.training.targets import assign_targets, make_targets
from tests.scenes import ground_truth, random_boxes, stack

GRID = AnchorGrid((64, 96))


def batch_of(count):
    rng = np.random.default_rng(2)
    sizes = jnp.array(rng.integers(24, 65, (count, 2)), jnp.int32)
    gts = [ground_truth(random_boxes(rng, 3, *map(int, size)), 4) for size in sizes]
    return sizes, stack(gts)


def test_values():
    gt = ground_truth(np.array([[0.0, 0, 8, 8], [4, 8, 24, 16]]), 3)
    positive = np.zeros(GRID.num_anchors, bool)
    positive[[0, 13]] = True  # centres (4, 4) and (12, 12)
    gt_index = np.zeros(GRID.num_anchors, np.int32)
    gt_index[13] = 1
    ignored = np.zeros_like(positive)
    ignored[5] = True
    targets = make_targets(
        Assignment(jnp.array(gt_index), jnp.array(positive), jnp.array(ignored)), gt, GRID
    )
    assert targets.labels[jnp.array([0, 13, 5, 6])].tolist() == [0, 1, -1, -1]
    np.testing.assert_array_equal(targets.boxes[0], [0, 0, 8, 8])
    np.testing.assert_array_equal(targets.boxes[13], [4, 8, 24, 16])
    np.testing.assert_array_equal(targets.boxes[6], GRID.boxes()[6])
    np.testing.assert_allclose(targets.centerness[0], 1.0)
    np.testing.assert_allclose(targets.centerness[13], np.sqrt(8 / 12), rtol=1e-6)
    assert float(jnp.sum(targets.centerness)) == pytest.approx(1 + np.sqrt(8 / 12))


def test_targets_carry_no_gradient():
    sizes, gt = batch_of(2)

    def total(boxes):
        targets = assign_targets(assign_atss_4, GRID, sizes, gt._replace(boxes=boxes))
        return jnp.sum(targets.boxes) + jnp.sum(targets.centerness)

    finite = jnp.nan_to_num(gt.boxes)
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(finite), jnp.zeros_like(finite))


assign_atss_4 = functools.partial(assign_atss, candidates_per_level=4)


@pytest.mark.parametrize(
    "name",
    ["atss", "max_iou"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("spatial_scale", "top_k_iou")],
)
def test_sharded_assignment_has_no_collective_and_equals_one_device(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sizes, gt = batch_of(16)
    assign = jax.jit(functools.partial(assign_targets, ASSIGNERS[name], GRID, mesh=mesh))
    inputs = jax.device_put((sizes, gt), NamedSharding(mesh, PartitionSpec("data")))
    compiled = assign.lower(*inputs).compile()
    collectives = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    text = compiled.as_text()
    assert text is not None and not re.findall(collectives, text)
    sharded = compiled(*inputs)
    assert sharded.labels.sharding.spec == PartitionSpec("data")
    alone = jax.jit(functools.partial(assign_targets, ASSIGNERS[name], GRID))(sizes, gt)
    for a, b in zip(sharded, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(alone.is_positive.sum()) > 0
