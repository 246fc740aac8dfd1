"""All assigners and targets against numbers computed by the official implementation.

The official code measures boxes between pixel centres, ours between pixel edges. Converted: its
anchors are `AnchorGrid(offset_px=0.5)`, its box (x1, y1, x2, y2) is (x1, y1, x2 + 1, y2 + 1); its
distances from edges are 0.5 px shorter, which the margins, the scale ranges and the insets below
make up for.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax import assigners
from atss_jax.assigners.spatial_scale import SCALE_RANGES
from atss_jax.geometry import boxes
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth
from atss_jax.training.targets import make_targets

HERE = Path(__file__).parent / "golden"
LOCAL = sorted(path.stem for path in HERE.glob("assign_*.npz"))
ALL = [f"assign_{i:03d}" for i in range(38)] + ["assign_empty"]
NUM_SLOTS = 64
INSET = np.array([0.5, 0.5, -0.5, -0.5], np.float32)
RANGES = tuple((low + 0.5, high + 0.5) for low, high in SCALE_RANGES)

GRIDS = {
    "A1_s8_r1": {},
    "A1_s4_r1": {"anchor_scale": 4.0},
    "A1_s5_r1": {"anchor_scale": 5.0},
    "A1_s6_r1": {"anchor_scale": 6.0},
    "A1_s8_r025": {"aspect_ratios": (0.25,)},
    "A1_s8_r05": {"aspect_ratios": (0.5,)},
    "A1_s8_r2": {"aspect_ratios": (2.0,)},
    "A1_s8_r4": {"aspect_ratios": (4.0,)},
    "A3_s8_ar": {"aspect_ratios": (0.5, 1.0, 2.0)},
    "A3_s8_oct": {"scales_per_octave": 3},
    "A9_s4": {"anchor_scale": 4.0, "aspect_ratios": (0.5, 1.0, 2.0), "scales_per_octave": 3},
    "A9_s8": {"aspect_ratios": (0.5, 1.0, 2.0), "scales_per_octave": 3},
}


def official_grid(anchor_key):
    name, shape = str(anchor_key).rsplit("__", 1)
    height, width = (int(side) for side in shape.split("x"))
    return AnchorGrid((height, width), offset_px=0.5, **GRIDS[name])


def assigners_for(k):
    """Golden name -> assigner with the official settings, for all but ATSS."""
    scale = functools.partial(assigners.assign_spatial_scale, scale_ranges=RANGES)
    return {
        "topk": functools.partial(assigners.assign_top_k_iou, candidates=k, in_box_margin=0.51),
        "iou": functools.partial(
            assigners.assign_max_iou, positives_in_box=True, in_box_margin=0.51
        ),
        "retinanet": assigners.assign_max_iou,
        "ssc": functools.partial(scale, in_box_margin=0.51),
        "fcos_r0": functools.partial(scale, in_box_margin=0.5),
        "fcos_r1.5_norm": functools.partial(scale, in_box_margin=0.5, center_radius=1.5),
    }


@functools.lru_cache
def assign_all(grid, k, names):
    """Jitted: (image_size, gt) -> every assignment, ATSS statistics, what the targets hold."""

    def everything(image_size, gt):
        # The three steps of `assign_atss`, for the statistics between them.
        candidates = assigners.select_candidates(
            grid, image_size, gt, candidates_per_level=k, in_box_margin=0.51
        )
        statistics = assigners.iou_thresholds(candidates)
        atss = assigners.resolve_positives(grid, image_size, candidates, statistics.threshold)
        found = {"atss": atss} | {
            name: assign(grid, image_size, gt)
            for name, assign in assigners_for(k).items()
            if name in names
        }
        centers = jnp.array(grid.centers())
        targets = {}
        for name, assignment in found.items():
            targets_of = make_targets(assignment, gt, grid)
            inset = targets_of.boxes + INSET
            targets[name] = {
                "deltas": boxes.encode_deltas(targets_of.boxes, jnp.array(grid.boxes())),
                "ltrb": boxes.points_to_ltrb(centers, inset),
                "centerness": boxes.centerness(centers, inset),
            }
        return found, statistics, targets

    return jax.jit(everything, compiler_options={"xla_backend_optimization_level": 0})


def ground_truth(official_boxes, labels):
    count = len(official_boxes)
    padded = np.full((NUM_SLOTS, 4), np.nan, np.float32)
    padded[:count] = official_boxes + np.array([0, 0, 1, 1], np.float32)
    slots = np.zeros(NUM_SLOTS, np.int32)
    slots[:count] = labels
    return GroundTruth(jnp.array(padded), jnp.array(slots), jnp.arange(NUM_SLOTS) < count)


def check_case(golden):
    grid = official_grid(golden["anchor_key"])
    gt = ground_truth(golden["gt_boxes"], golden["gt_labels"])
    size = jnp.array(grid.image_shape)
    names = tuple(name for name in assigners_for(1) if f"{name}/labels" in golden)
    is_empty = len(golden["gt_boxes"]) == 0
    assign = assign_all(grid, int(golden["k"]), tuple(assigners_for(1)) if is_empty else names)
    found, statistics, targets = jax.device_get(assign(size, gt))
    if is_empty:
        for assignment in found.values():
            assert not assignment.is_positive.any() and not assignment.is_ignored.any()
        return
    for name, assignment in found.items():
        labels, matched = golden[f"{name}/labels"], golden[f"{name}/matched_gt"]
        sure = ~golden[f"{name}/ambiguous"]
        where = f"{golden['anchor_key']} {name}"
        own_labels = np.asarray(gt.labels)[assignment.gt_index]
        mine = np.where(assignment.is_positive, own_labels, np.where(assignment.is_ignored, -1, 0))
        np.testing.assert_array_equal(mine[sure], labels[sure], err_msg=where)
        agreed = sure & (labels > 0)
        np.testing.assert_array_equal(assignment.gt_index[agreed], matched[agreed], err_msg=where)
    no_tie = ~golden["atss/gt_has_tie"]
    num_objects = len(no_tie)
    for name, value in zip(("mean", "std", "thr"), statistics, strict=True):
        expected = golden[f"atss/iou_{name}"]
        np.testing.assert_allclose(value[:num_objects][no_tie], expected[no_tie], atol=1e-5)
    for name in found:
        check_targets(golden, grid, name, found[name], targets[name])


def check_targets(golden, grid, name, assignment, targets):
    """Targets, as far as the file holds them, of the positives that both have."""
    rows = np.flatnonzero(golden[f"{name}/labels"] > 0)
    same = assignment.is_positive[rows] & ~golden[f"{name}/ambiguous"][rows]
    sides = grid.boxes()[rows, 2:] - grid.boxes()[rows, :2]
    mine = {"centerness_pos": targets["centerness"][rows]}
    if name == "atss":
        # The official unit is the anchor's side over its scale: the stride, if it is square.
        mine["reg_targets_pos"] = targets["deltas"][rows]
        unit = np.tile(sides, 2) / grid.anchor_scale
        mine["reg_targets_point_pos"] = targets["ltrb"][rows] / unit
    elif name == "retinanet":
        mine["reg_targets_pos"] = targets["deltas"][rows]
    elif name.startswith("fcos"):
        unit = grid.anchor_strides()[rows][:, None] if name.endswith("norm") else 1.0
        mine["reg_targets_pos"] = targets["ltrb"][rows] / unit
    for key, values in mine.items():
        if f"{name}/{key}" in golden:
            expected = golden[f"{name}/{key}"][same]
            np.testing.assert_allclose(values[same], expected, rtol=1e-5, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", LOCAL)
def test_equals_official(name):
    check_case(np.load(HERE / f"{name}.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in LOCAL])
def test_equals_official_everywhere(name, shared):
    check_case(np.load(shared / "golden" / f"{name}.npz"))
