"""Losses: by hand, at the edges, in micro-batches, and against the official numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atss_jax.assigners import assign_atss
from atss_jax.geometry import boxes as box_ops
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth, HeadOutputs, Targets
from atss_jax.training import box_losses
from atss_jax.training import losses as losses_lib
from atss_jax.training.losses import detection_losses
from atss_jax.training.targets import assign_targets
from tests.test_golden_assignment import GRIDS, assigners_for

GRID = AnchorGrid((32, 64))
GOLDEN = Path(__file__).parent / "golden"


def random_case(seed, *, batch=2, grid=GRID, classes=5, positives=6):
    rng = np.random.default_rng(seed)
    a = grid.num_per_location

    def maps(*extra):
        return tuple(
            jnp.asarray(rng.normal(size=(batch, h, w, a, *extra)), jnp.float32)
            for h, w in grid.level_shapes
        )

    outputs = HeadOutputs(maps(classes), maps(4), maps())
    count = grid.num_anchors
    labels = np.full((batch, count), -1, np.int32)
    boxes = np.broadcast_to(grid.boxes(), (batch, count, 4)).copy()
    centerness = np.zeros((batch, count), np.float32)
    for i in range(batch):
        chosen = rng.choice(count, positives, replace=False)
        labels[i, chosen] = rng.integers(0, classes, positives)
        boxes[i, chosen] += rng.uniform(-3, 3, (positives, 4))
        centerness[i, chosen] = rng.uniform(0.1, 1, positives)
    ignored = (rng.random((batch, count)) < 0.2) & (labels < 0)
    fields = (labels, boxes, centerness, labels >= 0, ignored)
    return outputs, Targets(*(jnp.asarray(x) for x in fields))


def flat(maps, batch, *extra):
    return np.concatenate([np.asarray(x).reshape(batch, -1, *extra) for x in maps], axis=1)


def by_hand(outputs, targets):
    """ATSS' losses with Python loops in float64."""
    batch, count = targets.labels.shape
    logits = flat(outputs.cls_logits, batch, outputs.cls_logits[0].shape[-1]).astype(np.float64)
    deltas = flat(outputs.box_regression, batch, 4)
    center = flat(outputs.centerness_logits, batch).astype(np.float64)
    anchors = GRID.boxes()
    cls = box = ctr = 0.0
    number = weight = 0.0
    for i in range(batch):
        for n in range(count):
            if not targets.is_ignored[i, n]:
                for k, z in enumerate(logits[i, n]):
                    p = 1 / (1 + np.exp(-z))
                    if targets.labels[i, n] == k:
                        cls -= 0.25 * (1 - p) ** 2 * np.log(p)
                    else:
                        cls -= 0.75 * p**2 * np.log(1 - p)
            if targets.is_positive[i, n]:
                c = float(targets.centerness[i, n])
                decoded = box_ops.decode_deltas(jnp.asarray(deltas[i, n]), jnp.asarray(anchors[n]))
                giou = float(box_ops.paired_giou(decoded, targets.boxes[i, n]))
                box += c * (1 - giou)
                p = 1 / (1 + np.exp(-center[i, n]))
                ctr -= c * np.log(p) + (1 - c) * np.log(1 - p)
                number, weight = number + 1, weight + c
    return cls / number, 2 * box / weight, ctr / number, number


@functools.partial(jax.jit, static_argnames=("regression", "box_loss", "normalizer"))
def jitted(outputs, targets, **settings):
    return detection_losses(outputs, targets, GRID, **settings)


def test_by_hand():
    outputs, targets = random_case(0)
    losses = jitted(outputs, targets)
    cls, box, center, number = by_hand(outputs, targets)
    np.testing.assert_allclose(losses.cls, cls, rtol=1e-5)
    np.testing.assert_allclose(losses.box, box, rtol=1e-5)
    np.testing.assert_allclose(losses.centerness, center, rtol=1e-5)
    np.testing.assert_allclose(losses.total, cls + box + center, rtol=1e-5)
    assert losses.num_positives == number == 12


@pytest.mark.parametrize("extreme", [0.0, 200.0])
def test_zero_positives(extreme):
    outputs, targets = random_case(1, positives=0)
    outputs = jax.tree.map(lambda x: x * extreme, outputs)
    losses, gradients = jax.value_and_grad(
        lambda o: (lambda x: (x.total, x))(jitted(o, targets)), has_aux=True
    )(outputs)
    assert losses[1].box == 0 and losses[1].centerness == 0
    assert np.isfinite(losses[0])
    for x in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(x))
    assert not any(np.any(x) for x in jax.tree.leaves(gradients[1:]))


def test_ignored_and_other_anchors_get_no_gradient():
    outputs, targets = random_case(2)
    gradients = jax.grad(lambda o: jitted(o, targets).total)(outputs)
    ignored, positive = np.asarray(targets.is_ignored), np.asarray(targets.is_positive)
    cls, box = flat(gradients.cls_logits, 2, 5), flat(gradients.box_regression, 2, 4)
    assert not np.any(cls[ignored]) and np.all(cls[~ignored])
    assert not np.any(box[~positive]) and np.all(np.any(box[positive], axis=-1))
    assert not np.any(flat(gradients.centerness_logits, 2)[~positive])


@pytest.mark.parametrize("normalizer", ["positives", "retinanet"])
def test_micro_batches_add_up(normalizer):
    outputs, targets = random_case(3, batch=4)
    settings = {"normalizer": normalizer}
    whole = jitted(outputs, targets, **settings)
    norms = losses_lib.count_normalizers(targets)
    parts = []
    for start in (0, 2):
        piece = jax.tree.map(lambda x, s=start: x[s : s + 2], (outputs, targets))
        parts.append(jitted(*piece, normalizers=norms, **settings))
    for field in ("total", "cls", "box", "centerness"):
        total = sum(getattr(p, field) for p in parts)
        np.testing.assert_allclose(total, getattr(whole, field), rtol=1e-6)
    assert parts[0].num_positives == whole.num_positives


def test_no_centerness_branch():
    outputs, targets = random_case(4)
    losses = jitted(outputs._replace(centerness_logits=None), targets)
    ones = targets._replace(centerness=jnp.where(targets.is_positive, 1.0, 0.0))
    np.testing.assert_allclose(losses.box, jitted(outputs, ones).box, rtol=1e-6)
    assert losses.centerness == 0


def test_words_are_checked():
    outputs, targets = random_case(5)
    with pytest.raises(ValueError, match="box_loss='eiou'"):
        jitted(outputs, targets, box_loss="eiou")
    with pytest.raises(ValueError, match="fcos_giou"):
        jitted(outputs, targets, box_loss="fcos_giou")
    with pytest.raises(ValueError, match="normalizer='mean'"):
        jitted(outputs, targets, normalizer="mean")


def relative_close(ours, golden, tolerance=1e-4):
    assert np.abs(np.asarray(ours) - golden).max() <= tolerance * np.abs(golden).max()


def test_elementwise_focal():
    golden = np.load(GOLDEN / "losses_elementwise.npz")
    labels = golden["focal_targets"]

    def total(logits):
        loss = losses_lib.focal_loss(
            logits,
            jnp.maximum(labels - 1, -1),
            alpha=float(golden["focal_alpha"]),
            gamma=float(golden["focal_gamma"]),
        )
        return jnp.sum(jnp.where((labels >= 0)[:, None], loss, 0)), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(
        jnp.asarray(golden["focal_logits"])
    )
    kept = labels >= 0
    np.testing.assert_allclose(loss[kept], golden["focal_loss"][kept], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, golden["focal_grad"], rtol=1e-4, atol=1e-6)


INSET = np.array([0.5, 0.5, -0.5, -0.5], np.float32)


def test_elementwise_giou():
    """1 - GIoU of the official deltas: ours on boxes inset by half a pixel (CONVENTIONS 0)."""
    golden = np.load(GOLDEN / "losses_elementwise.npz")
    ours = jnp.asarray(golden["giou_box_anchors"] + np.array([0, 0, 1, 1], np.float32))
    target = box_ops.decode_deltas(jnp.asarray(golden["giou_box_target"]), ours) + INSET

    def box_total(deltas):
        decoded = box_ops.decode_deltas(deltas, ours) + INSET
        loss = 1 - box_ops.paired_giou(decoded, target)
        return jnp.sum(loss), loss

    (_, loss), gradient = jax.value_and_grad(box_total, has_aux=True)(
        jnp.asarray(golden["giou_box_pred"])
    )
    np.testing.assert_allclose(loss, golden["giou_box_loss"], rtol=1e-4, atol=1e-4)
    relative_close(gradient, golden["giou_box_grad"])

    anchors = golden["giou_point_anchors"]
    points = jnp.asarray((anchors[:, :2] + anchors[:, 2:]) / 2)
    strides = jnp.asarray((anchors[:, 2] - anchors[:, 0] + 1) / 8)
    target = box_ops.decode_points(jnp.asarray(golden["giou_point_target"]), points, strides)

    def point_total(ltrb):
        loss = 1 - box_ops.paired_giou(box_ops.decode_points(ltrb, points, strides), target)
        return jnp.sum(loss), loss

    (_, loss), gradient = jax.value_and_grad(point_total, has_aux=True)(
        jnp.asarray(golden["giou_point_pred"])
    )
    np.testing.assert_allclose(loss, golden["giou_point_loss"], rtol=1e-4, atol=1e-4)
    relative_close(gradient, golden["giou_point_grad"])


def test_elementwise_others():
    golden = np.load(GOLDEN / "losses_elementwise.npz")
    pair = jnp.asarray(golden["fcos_ltrb_pred"]), jnp.asarray(golden["fcos_ltrb_target"])
    for kind in ("iou", "giou"):
        loss = box_losses.fcos_iou_loss(*pair, kind=kind)
        np.testing.assert_allclose(loss, golden[f"fcos_{kind}_loss"], rtol=1e-4, atol=1e-6)
    entropy = optax.losses.sigmoid_binary_cross_entropy(
        jnp.asarray(golden["ctr_logits"]), golden["ctr_targets"]
    )
    np.testing.assert_allclose(entropy, golden["ctr_bce"], rtol=1e-4, atol=1e-6)
    difference = jnp.asarray(golden["sl1_a"] - golden["sl1_b"])
    total = jnp.sum(box_losses.smooth_l1(difference, beta=float(golden["sl1_beta"])))
    np.testing.assert_allclose(total, golden["sl1_sum"], rtol=1e-5)


HEADS = {
    "atss_box_a1": ("atss", {}),
    "atss_box_a1_c80": ("atss", {}),
    "atss_box_a3": ("atss", {}),
    "atss_box_zero_pos": ("atss", {}),
    "atss_point_a1": ("atss", {"regression": "point"}),
    "iou_box_a1": ("iou", {}),
    "ssc_point_a1": ("ssc", {"regression": "point"}),
    "topk_box_a1": ("topk", {}),
    "fcos_iou": ("fcos_r0", {"regression": "point", "box_loss": "iou", "box_loss_weight": 1.0}),
    "fcos_imprv": (
        "fcos_r1.5_norm",
        {"regression": "point", "box_loss": "fcos_giou", "box_loss_weight": 1.0},
    ),
    "retinanet": (
        "retinanet",
        {"box_loss": "smooth_l1", "box_loss_weight": 1.0, "normalizer": "retinanet"},
    ),
}


def golden_grid(golden):
    """The grid of ours whose boxes are the official anchors."""
    height, width = (int(v) for v in golden["padded_hw"])
    shape = height, width
    if "anchors" not in golden.files:  # FCOS has points
        return AnchorGrid(shape, offset_px=0.5)
    official = golden["anchors"] + np.array([0, 0, 1, 1], np.float32)
    for settings in GRIDS.values():
        grid = AnchorGrid(shape, offset_px=0.5, **settings)
        if grid.num_anchors == len(official) and np.abs(grid.boxes() - official).max() < 1e-3:
            return grid
    raise AssertionError("no such grid")


@pytest.mark.slow
@pytest.mark.parametrize("case", HEADS)
def test_head_losses_equal_official(shared, case):
    golden = np.load(shared / "golden" / f"loss_{case}.npz")
    assigner, settings = HEADS[case]
    grid = golden_grid(golden)
    levels = range(3, 8)
    a = grid.num_per_location
    unit = np.array(grid.strides) if case == "fcos_iou" else np.ones(5)  # px to strides

    def level_maps(kind, level, *extra):
        x = golden[f"{kind}_P{level}"].transpose(0, 2, 3, 1)
        return jnp.asarray(x.reshape(*x.shape[:3], a, *extra))

    classes = int(golden["num_classes_fg"])
    outputs = HeadOutputs(
        tuple(level_maps("cls", i, classes) for i in levels),
        tuple(level_maps("reg", i, 4) / unit[i - 3] for i in levels),
        tuple(level_maps("ctr", i) for i in levels) if "ctr_P3" in golden.files else None,
    )
    slots = 24
    boxes, labels = np.zeros((2, slots, 4), np.float32), np.zeros((2, slots), np.int32)
    valid = np.zeros((2, slots), bool)
    for i in range(2):
        n = len(golden[f"gt_boxes_{i}"])
        boxes[i, :n] = golden[f"gt_boxes_{i}"] + np.array([0, 0, 1, 1], np.float32)
        labels[i, :n], valid[i, :n] = golden[f"gt_labels_{i}"] - 1, True
    ground_truth = GroundTruth(jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(valid))
    sizes = jnp.array([golden["padded_hw"]] * 2)
    k = int(golden["k"]) if "k" in golden.files else 9
    atss = functools.partial(assign_atss, candidates_per_level=k, in_box_margin=0.51)
    assign = {"atss": atss, **assigners_for(k)}[assigner]

    @jax.jit
    def compute(outputs, ground_truth):
        targets = assign_targets(assign, grid, sizes, ground_truth)
        return targets, detection_losses(outputs, targets, grid, **settings)

    targets, losses = compute(outputs, ground_truth)
    np.testing.assert_allclose(losses.cls, golden["loss_cls"], rtol=1e-4)
    np.testing.assert_allclose(losses.box, golden["loss_reg"], rtol=0.03)
    if "loss_centerness" in golden.files:
        np.testing.assert_allclose(losses.centerness, golden["loss_centerness"], rtol=0.03)
    if "labels" in golden.files:
        ours = np.where(
            targets.is_ignored, -1, np.where(targets.is_positive, targets.labels + 1, 0)
        )
        np.testing.assert_array_equal(ours, golden["labels"])
        assert losses.num_positives == golden["num_pos"]


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_iou_losses_equal_mmdetection(shared, name):
    """Values and gradients, in float64 there; the first five pairs are identical boxes."""
    golden = np.load(shared / "golden" / "beyond" / "losses_beyond.npz")
    similarity = getattr(box_ops, f"paired_{name}")
    target, cotangent = jnp.asarray(golden["box/target"]), golden[f"box/{name}/cotangent"]
    loss, pull_back = jax.vjp(lambda b: 1 - similarity(b, target), jnp.asarray(golden["box/pred"]))
    np.testing.assert_allclose(loss, golden[f"box/{name}/loss"], rtol=1e-5, atol=1e-5)
    relative_close(pull_back(jnp.asarray(cotangent, jnp.float32))[0], golden[f"box/{name}/grad"])


@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_diou_and_ciou_by_hand(name):
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 50, (2, 40, 2))
    boxes, others = np.concatenate([corners, corners + rng.uniform(5, 60, (2, 40, 2))], -1)
    others[::2] = boxes[::2] + rng.uniform(-2, 2, (20, 4))  # overlaps above one half
    expected = []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(boxes, others, strict=True):
        shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
        iou = shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)
        diagonal = (max(x2, u2) - min(x1, u1)) ** 2 + (max(y2, v2) - min(y1, v1)) ** 2
        distance = ((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2
        value = iou - distance / diagonal
        if name == "ciou" and iou > 0.5:
            angle = np.arctan((u2 - u1) / (v2 - v1)) - np.arctan((x2 - x1) / (y2 - y1))
            v = 4 / np.pi**2 * angle**2
            value -= v / (1 - iou + v) * v
        expected.append(value)
    got = getattr(box_ops, f"paired_{name}")(jnp.asarray(boxes), jnp.asarray(others))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regression", ["box", "point"])
@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_diou_and_ciou_train_both_kinds_of_regression(regression, name):
    outputs, targets = random_case(6)
    plain = jitted(outputs, targets, regression=regression)
    gradients = jax.grad(lambda o: jitted(o, targets, regression=regression, box_loss=name).box)(
        outputs
    )
    losses = jitted(outputs, targets, regression=regression, box_loss=name)
    assert losses.box > 0 and losses.box != plain.box and losses.cls == plain.cls
    values = flat(gradients.box_regression, 2, 4)
    assert np.isfinite(values).all() and np.any(values[np.asarray(targets.is_positive)])


@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_gradients_of_flat_and_equal_boxes_are_finite(name):
    boxes = jnp.array([[1.0, 1, 1, 1], [5, 5, 2, 9], [1, 1, 7, 7], [1, 1, 9, 1]])
    target = jnp.array([[1.0, 1, 1, 1], [2, 2, 8, 8], [1, 1, 7, 7], [20, 20, 30, 25]])
    similarity = getattr(box_ops, f"paired_{name}")
    assert np.isfinite(jax.grad(lambda b: similarity(b, target).sum())(boxes)).all()
