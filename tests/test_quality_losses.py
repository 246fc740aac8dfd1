"""Losses after the paper: mmdetection's numbers, whole losses by NumPy, gradients, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.errors import UserError
from atss_jax.models.distributions import expected_distances
from atss_jax.structures import HeadOutputs
from atss_jax.training.config import LossConfig
from atss_jax.training.distribution_loss import distribution_focal_loss
from atss_jax.training.losses import make_losses
from atss_jax.training.quality_losses import quality_focal_loss, quality_targets, varifocal_loss
from tests.test_losses import GRID, flat, random_case


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/beyond/losses_beyond.npz")


def check(golden, name, function, logits):
    """`function` of the logits has the losses and the gradient of the golden file.

    The files are float64 and ours float32: 2e-6 of each loss, and of the largest gradient.
    """
    loss = function(logits)
    np.testing.assert_allclose(loss, golden[f"{name}/loss"], rtol=5e-6, atol=1e-6)
    cotangent = jnp.asarray(golden[f"{name}/cotangent"], jnp.float32)
    cotangent = cotangent.reshape(cotangent.shape + (1,) * (loss.ndim - cotangent.ndim))
    gradient = jax.grad(lambda x: jnp.sum(function(x) * cotangent))(logits)
    np.testing.assert_allclose(gradient, golden[f"{name}/grad"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("beta", [2.0, 1.5])
def test_quality_focal_loss_is_mmdetections(golden, beta):
    labels = golden["qfl/labels"]
    logits = jnp.asarray(golden["qfl/logits"])
    labels = jnp.asarray(np.where(labels == logits.shape[1], -1, labels))
    target = quality_targets(labels, jnp.asarray(golden["qfl/quality"]), logits.shape[1])
    check(
        golden,
        f"qfl/beta{beta}",
        lambda x: jnp.sum(quality_focal_loss(x, target, beta=beta), axis=-1),
        logits,
    )


def test_varifocal_loss_is_mmdetections(golden):
    target = jnp.asarray(golden["vfl/target"])
    check(
        golden,
        "vfl/iou_weighted_True",
        lambda x: varifocal_loss(x, target, alpha=0.75, gamma=2.0),
        jnp.asarray(golden["vfl/logits"]),
    )


def test_distribution_focal_loss_and_mean_are_mmdetections(golden):
    label = jnp.asarray(golden["dfl/label"])
    inside = golden["dfl/label"] <= 15.9  # mmdetection limits labels before its loss
    assert np.sum(inside) > 300
    logits = jnp.asarray(golden["dfl/logits"])
    part = {k: golden[f"dfl/{k}"][inside] for k in ("loss", "cotangent", "grad")}
    check(
        {f"dfl/{k}": v for k, v in part.items()},
        "dfl",
        lambda x: distribution_focal_loss(x, label[inside]),
        logits[inside],
    )
    sides = jnp.asarray(golden["integral/logits"]).reshape(-1, 4, 17)
    expected = golden["integral/distances"]
    np.testing.assert_allclose(expected_distances(sides), expected, rtol=2e-6)


def test_distances_beyond_the_bins_stay_finite_and_reach_the_last():
    logits = jnp.zeros(5)
    loss = distribution_focal_loss(jnp.stack([logits] * 3), jnp.array([-7.0, 4.0, 1e9]))
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
    gradient = jax.grad(lambda x: distribution_focal_loss(x, jnp.array(1e9)))(logits)
    np.testing.assert_allclose(gradient, 0.2 - np.array([0, 0, 0, 0.1, 0.9]), atol=1e-6)


def distribution_case(seed=0, bins=9):
    """(outputs, targets) of a GFL head on `GRID`."""
    outputs, targets = random_case(seed)
    rng = np.random.default_rng(seed + 100)
    sides = tuple(
        jnp.asarray(rng.normal(size=(*x.shape[:-1], 4, bins)), jnp.float32)
        for x in outputs.box_regression
    )
    boxes = tuple(expected_distances(x) for x in sides)
    return HeadOutputs(outputs.cls_logits, boxes, None, sides), targets


GFL = make_losses(LossConfig(cls_loss="quality_focal", box_weights="score"), "point")


@jax.jit
def gfl(outputs, targets, normalizers=None):
    return GFL(outputs, targets, GRID, normalizers)


def paired_overlaps(box, other):
    """(IoU, GIoU) of two xyxy boxes."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    inner = np.prod(np.maximum(sides, 0))
    union = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - inner
    hull = np.prod(np.maximum(box[2:], other[2:]) - np.minimum(box[:2], other[:2]))
    return inner / union, inner / union - (hull - union) / hull


def gfl_by_hand(outputs, targets):
    """(classification, box loss) of GFL with Python loops."""
    batch, count = targets.labels.shape
    logits, boxes = flat(outputs.cls_logits, batch, 5), flat(outputs.box_regression, batch, 4)
    sides = flat(outputs.side_logits, batch, 4, outputs.side_logits[0].shape[-1])
    targets = jax.tree.map(np.asarray, targets)
    cls = box = distribution = weight = number = 0.0
    for i, n in np.ndindex(batch, count):
        quality = 0.0
        p = 1 / (1 + np.exp(-logits[i, n].astype(np.float64)))
        if targets.is_positive[i, n]:
            center, stride = GRID.centers()[n], GRID.anchor_strides()[n]
            goal = targets.boxes[i, n].astype(np.float64)
            left_top, right_bottom = np.split(boxes[i, n].astype(np.float64) * stride, 2)
            decoded = np.r_[center - left_top, center + right_bottom]
            quality, giou = paired_overlaps(decoded, goal)
            number, weight = number + 1, weight + max(p)
            box += max(p) * (1 - giou)
            distances = np.r_[center - goal[:2], goal[2:] - center] / stride
            for side, distance in enumerate(np.clip(distances, 0, sides.shape[-1] - 1.1)):
                log_p = sides[i, n, side] - np.log(np.sum(np.exp(sides[i, n, side])))
                left = int(distance)
                part = (left + 1 - distance) * log_p[left] + (distance - left) * log_p[left + 1]
                distribution -= max(p) * part / 4
        if not targets.is_ignored[i, n]:
            y = np.where(targets.labels[i, n] == np.arange(5), quality, 0)
            entropy = -y * np.log(p) - (1 - y) * np.log(1 - p)
            cls += np.sum(np.abs(y - p) ** 2 * entropy)
    return cls / number, (2 * box + 0.25 * distribution) / max(weight, 1.0)


@pytest.mark.parametrize("shift", [0.0, -7.0], ids=["sure", "weights that add up to less than 1"])
def test_gfl_losses_by_hand(shift):
    outputs, targets = distribution_case()
    outputs = outputs._replace(cls_logits=tuple(x + shift for x in outputs.cls_logits))
    losses = gfl(outputs, targets)
    cls, box = gfl_by_hand(outputs, targets)
    np.testing.assert_allclose([losses.cls, losses.box], [cls, box], rtol=2e-5)
    assert losses.centerness == 0 and losses.total == losses.cls + losses.box


VFNET = make_losses(LossConfig(cls_loss="varifocal", box_weights="iou"), "point")


def vfnet_case(seed):
    """(outputs, targets) of a head with refined boxes on `GRID`."""
    outputs, targets = random_case(seed)
    first, other = random_case(seed + 50)[0].box_regression, outputs.box_regression
    positive = [tuple(jnp.exp(x) for x in maps) for maps in (other, first)]
    return HeadOutputs(outputs.cls_logits, positive[0], None, None, positive[1]), targets


@jax.jit
def vfnet(outputs, targets, normalizers=None):
    return VFNET(outputs, targets, GRID, normalizers)


def test_vfnet_losses_by_hand():
    outputs, targets = vfnet_case(5)
    losses = vfnet(outputs, targets)
    logits = flat(outputs.cls_logits, 2, 5).astype(np.float64)
    goals = jax.tree.map(np.asarray, targets)
    cls = 0.0
    sums = np.zeros((2, 2))  # (refined, first) x (weighted loss, weight)
    for i, n in np.ndindex(*goals.labels.shape):
        quality = 0.0
        if goals.is_positive[i, n]:
            for j, maps in enumerate((outputs.first_boxes, outputs.box_regression)):
                sides = flat(maps, 2, 4)[i, n].astype(np.float64) * GRID.anchor_strides()[n]
                center = GRID.centers()[n]
                box = np.r_[center - sides[:2], center + sides[2:]]
                quality, giou = paired_overlaps(box, goals.boxes[i, n].astype(np.float64))
                sums[j] += quality * (1 - giou), quality
        if not goals.is_ignored[i, n]:
            p = 1 / (1 + np.exp(-logits[i, n]))
            y = np.where(goals.labels[i, n] == np.arange(5), quality, 0)
            weight = np.where(y > 0, y, 0.75 * p**2)
            cls -= np.sum(weight * (y * np.log(p) + (1 - y) * np.log(1 - p)))
    first, refined = sums[:, 0] / np.maximum(sums[:, 1], 1)
    np.testing.assert_allclose(losses.cls, cls / losses.num_positives, rtol=2e-5)
    np.testing.assert_allclose(losses.box, 2 * refined + 1.5 * first, rtol=2e-5)


def overlaps_by_hand(maps, targets):
    """IoU of every positive's box with its goal, 0 elsewhere."""
    goals, sides = jax.tree.map(np.asarray, targets), flat(maps, 2, 4)
    quality = np.zeros(goals.labels.shape, np.float32)
    for i, n in zip(*np.nonzero(goals.is_positive), strict=True):
        center, far = GRID.centers()[n], sides[i, n] * GRID.anchor_strides()[n]
        box = np.r_[center - far[:2], center + far[2:]]
        quality[i, n] = paired_overlaps(box, goals.boxes[i, n])[0]
    return quality


def test_targets_and_weights_that_are_predicted_have_no_gradient():
    outputs, targets = vfnet_case(5)
    outputs = outputs._replace(first_boxes=None)
    boxes = outputs.box_regression

    def gradient(settings, part, targets, **fields):
        def loss(boxes):
            found = settings(outputs._replace(box_regression=boxes, **fields), targets, GRID)
            return getattr(found, part)

        return jax.jit(jax.grad(loss))(boxes)

    assert not any(np.any(x) for x in gradient(VFNET, "cls", targets))
    # the same weights as constants: centerness targets of the plain loss
    fixed = targets._replace(centerness=jnp.asarray(overlaps_by_hand(boxes, targets)))
    assert np.sum(fixed.centerness) > 1
    centerness = tuple(jnp.zeros(x.shape[:-1]) for x in boxes)
    plain = gradient(make_losses(LossConfig(), "point"), "box", fixed, centerness_logits=centerness)
    for found, expected in zip(gradient(VFNET, "box", targets), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    outputs, targets = distribution_case(5)
    of_box = jax.jit(jax.grad(lambda o: GFL(o, targets, GRID).box))(outputs)
    of_cls = jax.jit(jax.grad(lambda o: GFL(o, targets, GRID).cls))(outputs)
    assert not any(np.any(x) for x in (*of_box.cls_logits, *of_cls.box_regression))
    assert any(np.any(x) for x in of_box.box_regression)


def test_a_positive_that_misses_its_object_is_no_negative_of_the_varifocal_loss():
    outputs, targets = vfnet_case(7)
    tiny = tuple(jnp.full_like(x, 1e-30) for x in outputs.box_regression)  # an IoU of 0
    outputs = outputs._replace(box_regression=tiny, first_boxes=tiny)
    assert not overlaps_by_hand(tiny, targets).any()
    gradient = jax.grad(lambda o: VFNET(o, targets, GRID).cls)(outputs)
    own = np.eye(6)[np.asarray(targets.labels)][..., :5].astype(bool)
    own &= np.asarray(targets.is_positive)[..., None]
    values = flat(gradient.cls_logits, 2, 5)
    assert np.any(own) and np.all(np.abs(values[own]) < 1e-5)
    others = np.asarray(targets.is_positive)[..., None] & ~own
    assert np.all(values[np.broadcast_to(others, values.shape)] > 1e-5)


def test_gradients_of_first_boxes_reach_positives_alone():
    outputs, targets = vfnet_case(6)
    gradients = jax.jit(jax.grad(lambda o: VFNET(o, targets, GRID).total))(outputs)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradients))
    for maps in (gradients.box_regression, gradients.first_boxes):
        values = flat(maps, 2, 4)
        assert not np.any(values[~targets.is_positive]) and np.any(values[targets.is_positive])


def test_gradients_are_finite_and_zero_where_nothing_is_to_learn():
    outputs, targets = distribution_case(1)
    gradients = jax.jit(jax.grad(lambda o: GFL(o, targets, GRID).total))(outputs)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradients))
    cls = flat(gradients.cls_logits, 2, 5)
    assert not np.any(cls[targets.is_ignored]) and np.any(cls[targets.is_positive])
    for maps, rest in ((gradients.box_regression, (4,)), (gradients.side_logits, (4, 9))):
        values = flat(maps, 2, *rest)
        assert not np.any(values[~targets.is_positive]) and np.any(values[targets.is_positive])


def test_nothing_to_find_gives_finite_losses_without_boxes():
    outputs, targets = distribution_case(2)
    empty = targets._replace(
        labels=jnp.full_like(targets.labels, -1), is_positive=jnp.zeros_like(targets.is_positive)
    )
    losses = gfl(outputs, empty)
    assert losses.box == 0 and losses.cls > 0 and losses.num_positives == 0


@pytest.mark.parametrize("settings", [GFL, VFNET], ids=["gfl", "vfnet"])
def test_numbers_of_micro_batches_add_up(settings):
    outputs, targets = (distribution_case if settings is GFL else vfnet_case)(3)
    losses = gfl if settings is GFL else vfnet
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], (outputs, targets)) for i in range(2)]
    count = jax.jit(lambda o, t: settings.count(o, t, GRID))
    norms = jax.tree.map(lambda a, b: a + b, *(count(*part) for part in parts))
    summed = [losses(*part, norms) for part in parts]
    np.testing.assert_allclose(
        losses(outputs, targets).total, sum(x.total for x in summed), rtol=1e-6
    )


def test_predicted_weights_with_retinanets_normaliser_are_refused():
    with pytest.raises(UserError, match="box_weights='score'.*Set normalizer"):
        LossConfig(box_weights="score", normalizer="retinanet")
