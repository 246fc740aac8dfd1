"""Parts of later heads: distribution quality and star sampling, against NumPy; gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.errors import UserError
from atss_jax.models.config import ModelConfig
from atss_jax.models.distributions import DistributionQuality, joint_logits
from atss_jax.models.head import Head
from atss_jax.models.star_refinement import StarConv, star_offsets


def test_distribution_quality_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4, 17)).astype(np.float32)
    module = DistributionQuality(hidden=8)
    variables = module.init(jax.random.key(0), jnp.asarray(logits))
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), variables
    )
    p = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    top = -np.sort(-p, axis=-1)[..., :4]
    features = np.concatenate([top, top.mean(axis=-1, keepdims=True)], axis=-1).reshape(6, 20)
    one, two = variables["params"]["hidden"], variables["params"]["quality"]
    hidden = np.maximum(features @ one["kernel"] + one["bias"], 0)
    expected = (hidden @ two["kernel"] + two["bias"])[:, 0]
    np.testing.assert_allclose(module.apply(variables, jnp.asarray(logits)), expected, rtol=1e-4)


def test_joint_logits_are_those_of_the_product():
    a, b = np.meshgrid(np.linspace(-12, 12, 9), np.linspace(-12, 12, 9))
    p = 1 / (1 + np.exp(-a)) / (1 + np.exp(-b))
    expected = np.log(p) - np.log1p(-p)
    found = joint_logits(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    far = jnp.array([-300.0, 300.0])
    assert np.all(np.isfinite(jax.vmap(jax.grad(lambda x: joint_logits(x, x)))(far)))


def bilinear(x, y, column):
    """A map [h, w, C] at a fractional cell, zero outside."""
    total = np.zeros(x.shape[-1])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for col in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= row < x.shape[0] and 0 <= col < x.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(column - col)) * x[row, col]
    return total


def test_star_convolution_reads_nine_points_of_the_box():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 4, 5, 3)).astype(np.float32)
    box = rng.uniform(0, 2.5, (1, 4, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 3)).astype(np.float32)
    found = StarConv(jax.nn.initializers.normal()).apply(
        {"params": {"kernel": jnp.asarray(kernel)}}, (jnp.asarray(x),), (jnp.asarray(box),), (None,)
    )[0]
    for y, column in np.ndindex(4, 5):
        left, top, right, bottom = box[0, y, column]
        total = sum(
            bilinear(x[0], y + dy, column + dx) @ kernel[i, j]
            for i, dy in enumerate((-top, 0, bottom))
            for j, dx in enumerate((-left, 0, right))
        )
        np.testing.assert_allclose(found[0, y, column], np.maximum(total, 0), rtol=1e-4, atol=1e-5)


def test_star_offsets_of_a_box_of_one_cell_each_way_are_none():
    assert not np.any(star_offsets(jnp.ones((2, 3, 4))))


HEADS = {
    "gfl": {"regression": "point", "side_bins": 8},
    "gflv2": {"regression": "point", "side_bins": 8, "distribution_quality": True},
    "vfnet": {"regression": "point", "point_activation": "exp", "star_refinement": True},
}


@pytest.fixture(scope="module", params=HEADS)
def head_case(request):
    """(head, variables, features, masks): two levels, the second image smaller than its map."""
    config = ModelConfig(head_convs=1, fpn_channels=8, centerness="none", **HEADS[request.param])
    head = Head(config, 3)
    rng = np.random.default_rng(2)
    masks, features = [], []
    for h, w in ((4, 6), (2, 3)):
        mask = np.ones((2, h, w), bool)
        mask[1, :, w - w // 3 :] = False
        x = rng.normal(size=(2, h, w, 8)) * mask[..., None]
        masks.append(jnp.asarray(mask))
        features.append(jnp.asarray(x, jnp.float32))
    features, masks = tuple(features), tuple(masks)
    return head, jax.jit(head.init)(jax.random.key(0), features, masks), features, masks


def test_what_only_losses_read_is_given_in_training_alone(head_case):
    head, variables, features, masks = head_case
    plain = jax.eval_shape(lambda: head.apply(variables, features, masks))
    train = jax.eval_shape(lambda: head.apply(variables, features, masks, train=True))
    assert plain.side_logits is None and plain.first_boxes is None
    assert (train.side_logits is None) != (train.first_boxes is None)
    assert [x.shape for x in plain.box_regression] == [(2, 4, 6, 1, 4), (2, 2, 3, 1, 4)]


def test_boxes_start_inside_the_image_and_gradients_are_finite(head_case):
    head, variables, features, masks = head_case

    def total(variables, features):
        outputs = head.apply(variables, features, masks)
        boxes = sum(jnp.sum(x[0]) for x in outputs.box_regression)
        return boxes + sum(jnp.sum(x[0]) for x in outputs.cls_logits), outputs

    grad = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (of_variables, of_features), outputs = grad(variables, features)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((of_variables, of_features)))
    assert all(np.any(x) for x in jax.tree.leaves(of_variables["params"]["box_regression"]))
    for x in of_features:  # the second image has no part in it
        assert np.any(x[0]) and not np.any(x[1])
    for x in outputs.box_regression:
        assert np.all(x >= 0) and np.all(x < 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"side_bins": 16}, 'Set regression="point"'),
        ({"distribution_quality": True}, "there are no distributions"),
        ({"star_refinement": True}, "plain distances"),
        ({"star_refinement": True, "regression": "point", "side_bins": 4}, "plain distances"),
    ],
)
def test_parts_that_lack_what_they_work_on_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**fields)
