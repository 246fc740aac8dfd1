"""Checks of sums, boxes, assignment and NMS against NumPy in float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from atss_jax.assigners.atss import assign_atss
from atss_jax.geometry import boxes as box_ops
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.nms import class_wise_nms
from atss_jax.run.selftest import reference
from atss_jax.runtime import xla_flags
from atss_jax.structures import GroundTruth

RELATIVE_TOLERANCE = 1e-4
"""Float32 sums of up to 30 million terms, in whatever order a device takes them."""

REDUCTIONS = (
    ((16, 22_400, 80), (0, 1, 2)),  # classification loss of 16 images of 800x1344
    ((16, 22_400), (0, 1)),  # box and centerness losses
    ((2, 100, 168, 256), (1, 2)),  # group normalisation over P3
    ((8, 64, 80, 32), (0, 1, 2)),  # batch normalisation
    ((3, 3, 256, 256), (0, 1, 2, 3)),  # norm of a gradient
    ((32_769,), (0,)),
)
"""(shape, reduced axes) as losses, normalisation and gradient norms have them."""

PROBE_ROWS = 32_769


def wrong_sums() -> int:
    """How many sums of the pattern of JAX issue 39103 are wrong."""
    squares = np.arange(PROBE_ROWS, dtype=np.float64) ** 2
    rows = np.zeros((PROBE_ROWS, 3), np.float32)
    rows[:, 0] = np.arange(PROBE_ROWS)
    matrix = jnp.eye(3)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    return int(np.sum(~np.isclose(np.asarray(found), squares, rtol=1e-5)))


def known_miscompilation() -> tuple[bool, str]:
    """Whether this process has the fault, and on an affected jaxlib whether it was seen without."""
    wrong = wrong_sums()
    if wrong:
        return False, f"{wrong} of {PROBE_ROWS} sums are wrong. {xla_flags.note() or ''}"
    if not xla_flags.is_affected():
        return True, f"0 of {PROBE_ROWS} sums are wrong"
    code = f"from {__name__} import wrong_sums; print(wrong_sums())"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{xla_flags.SWITCH}=+reduce",
    }
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return True, f"0 wrong here, {child.stdout.strip()} without the switch: {xla_flags.note()}"


def reductions() -> tuple[bool, str]:
    """Sum, mean and norm of every shape in `REDUCTIONS`."""
    errors = []
    for shape, axes in REDUCTIONS:
        values = np.random.default_rng(len(shape)).standard_normal(shape, np.float32) ** 2
        found = jax.jit(
            lambda x, a=axes: (jnp.sum(x, a), jnp.mean(x, a), jnp.sqrt(jnp.sum(x * x, a)))
        )(values)
        right = (
            values.sum(axes, dtype=np.float64),
            values.mean(axes, dtype=np.float64),
            np.sqrt(np.square(values, dtype=np.float64).sum(axes)),
        )
        for a, b in zip(found, right, strict=True):
            errors.append(np.max(np.abs(np.asarray(a) - b) / b))
    worst = float(np.max(errors))  # unlike max, it keeps a NaN
    return worst < RELATIVE_TOLERANCE, f"largest relative error {worst:.1e}"


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """xyxy px within 256 x 256, float32, [count, 4]."""
    corner, size = rng.uniform(0, 180, (count, 2)), rng.uniform(8, 76, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def box_arithmetic() -> tuple[bool, str]:
    """Generalised IoU, and deltas that decode to the boxes they encode."""
    rng = np.random.default_rng(1)
    first, second = random_boxes(rng, 1000), random_boxes(rng, 1000)
    found = np.asarray(jax.jit(box_ops.paired_giou)(first, second))
    error = float(np.max(np.abs(found - reference.giou(first, second))))
    there_and_back = jax.jit(lambda a, b: box_ops.decode_deltas(box_ops.encode_deltas(b, a), a))
    drift = float(np.max(np.abs(np.asarray(there_and_back(first, second)) - second)))
    return error < 1e-4 and drift < 1e-2, f"GIoU within {error:.1e}, round trip {drift:.1e} px"


def assignment() -> tuple[bool, str]:
    """Every anchor of ATSS on 20 scenes, against Algorithm 1 of the paper."""
    grid = AnchorGrid((256, 256))
    slots = 16
    assign = jax.jit(lambda size, gt: assign_atss(grid, size, gt, candidates_per_level=9))
    different = 0
    for scene in range(20):
        rng = np.random.default_rng(scene)
        count = int(rng.integers(1, slots))
        boxes = np.zeros((slots, 4), np.float32)
        boxes[:count] = random_boxes(rng, count)
        gt = GroundTruth(boxes, np.zeros(slots, np.int32), np.arange(slots) < count)
        found = jax.device_get(assign(np.array([256, 256], np.int32), gt))
        owner = reference.atss_positives(grid.boxes(), grid.level_starts, boxes[:count], 9)
        different += int(np.sum(np.where(found.is_positive, found.gt_index, -1) != owner))
    return different == 0, f"{different} of {20 * grid.num_anchors} anchors differ"


def nms() -> tuple[bool, str]:
    """Survivors of greedy NMS on 10 crowded scenes."""
    suppress = jax.jit(
        lambda boxes, scores, labels, is_valid: class_wise_nms(
            boxes, scores, labels, is_valid, iou_threshold=0.6, max_detections=100
        )
    )
    labels, is_valid = np.zeros(300, np.int32), np.ones(300, bool)
    different = 0
    for scene in range(10):
        rng = np.random.default_rng(100 + scene)
        boxes, scores = random_boxes(rng, 300), rng.permutation(300).astype(np.float32) / 300
        index, is_kept = jax.device_get(suppress(boxes, scores, labels, is_valid))
        kept = reference.greedy_nms(boxes, scores, 0.6)[:100]
        different += index[is_kept].tolist() != kept
    return different == 0, f"{different} of 10 scenes differ"


CHECKS = (
    ("known miscompilation", known_miscompilation),
    ("sums, means and norms", reductions),
    ("box arithmetic", box_arithmetic),
    ("ATSS assignment", assignment),
    ("NMS", nms),
)
"""(name, check); a check gives (passed, detail)."""
