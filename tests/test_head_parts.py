"""Parts of later heads: distribution quality and star sampling, against NumPy; gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.errors import UserError
from atss_jax.models import star_refinement
from atss_jax.models.config import ModelConfig
from atss_jax.models.distributions import DistributionQuality, joint_logits
from atss_jax.models.dynamic_head import DynamicBlock, DynamicRelu, own_mean, resize_own
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
    found = np.asarray(module.apply(variables, jnp.asarray(logits)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


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
    "dynamic": {"dynamic_blocks": 1},
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
    assert (train.side_logits is None) == (not head.config.side_bins)
    assert (train.first_boxes is None) == (not head.config.star_refinement)
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
        assert head.config.regression == "box" or (np.all(x >= 0) and np.all(x < 9))


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


def test_resizing_ties_corners_to_corners_of_the_own_cells():
    ramp = np.add.outer(np.arange(3.0) * 2, np.arange(4.0) * 3)
    x = np.zeros((1, 5, 6, 1), np.float32)
    x[0, :3, :4, 0] = ramp
    mask, out_mask = np.zeros((1, 5, 6), bool), np.zeros((1, 9, 10), bool)
    mask[:, :3, :4] = True
    out_mask[:, :5, :7] = True
    found = resize_own(jnp.asarray(x), jnp.asarray(mask), (9, 10), jnp.asarray(out_mask))
    expected = np.add.outer(np.arange(5.0), np.arange(7.0) * 1.5)
    np.testing.assert_allclose(found[0, :5, :7, 0], expected, rtol=1e-5)
    assert not np.any(found[0, 5:]) and not np.any(found[0, :, 7:])


def test_dynamic_relu_by_hand():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 3, 3, 8)).astype(np.float32)
    module = DynamicRelu()
    variables = module.init(jax.random.key(0), jnp.asarray(x), None)
    variables = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype), variables)
    one, two = variables["params"]["hidden"], variables["params"]["coefficients"]
    hidden = np.maximum(x.mean((1, 2)) @ one["kernel"] + one["bias"], 0)
    raw = np.clip((hidden @ two["kernel"] + two["bias"] + 3) / 6, 0, 1) - 0.5
    a1, b1, a2, b2 = (raw[:, None, None, 8 * i : 8 * i + 8] for i in range(4))
    expected = np.maximum(x * (2 * a1 + 1) + b1, x * 2 * a2 + b2)
    found = np.asarray(module.apply(variables, jnp.asarray(x), None))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "learned"])
def test_a_dynamic_block_by_hand(is_fresh):
    """Deformable convolutions, level and channel attention, by NumPy.

    Offsets start at 0 and factors at 1/2: plain convolutions of half strength.
    """
    rng = np.random.default_rng(4)
    maps = [rng.normal(size=(1, s, s, 4)).astype(np.float32) for s in (4, 2)]
    block = DynamicBlock()
    features = tuple(jnp.asarray(x) for x in maps)
    variables = block.init(jax.random.key(0), features, (None, None))
    params = variables["params"]
    params["level_score"]["kernel"] = jnp.asarray(rng.normal(size=(4, 1)), jnp.float32)
    if not is_fresh:
        params["offset"] = {
            "kernel": jnp.asarray(rng.normal(0, 0.2, size=(3, 3, 4, 27)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=27), jnp.float32),
        }

    def plain(x, kernel):
        padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        return np.einsum("yxcij,ijcn->yxn", windows, np.asarray(kernel))

    def convolved(x, level, name, stride):
        predicted = plain(maps[level], params["offset"]["kernel"]) + params["offset"]["bias"]
        kernel, side = np.asarray(params[f"{name}_kernel"]), x.shape[1] // stride
        y = np.zeros((side, side, 4))
        for i, j in np.ndindex(side, side):
            for tap, (u, v) in enumerate(np.ndindex(3, 3)):
                dy, dx = predicted[i, j, 2 * tap : 2 * tap + 2]
                factor = 1 / (1 + np.exp(-predicted[i, j, 18 + tap]))
                read = bilinear(x[0], i * stride + u - 1 + dy, j * stride + v - 1 + dx)
                y[i, j] += factor * read @ kernel[u, v]
        # GroupNorm: as many groups as channels
        y = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + 1e-5)
        score = np.maximum(y.mean((0, 1)) @ np.asarray(params["level_score"]["kernel"]), 0)
        return y * np.clip((score + 3) / 6, 0, 1)

    weights = np.maximum(1 - np.abs(np.arange(4)[:, None] / 3 - np.arange(2)), 0)
    above = np.einsum("yi,xj,bijc->byxc", weights, weights, maps[1])
    sums = (
        (convolved(maps[0], 0, "own", 1) + convolved(above, 0, "coarser", 1)) / 2,
        (convolved(maps[1], 1, "own", 1) + convolved(maps[0], 1, "finer", 2)) / 2,
    )
    activation = DynamicRelu()
    found: Any = block.apply({"params": params}, features, (None, None))
    for x, y in zip(found, sums, strict=True):
        own = {"params": params["activation"]}
        expected = np.asarray(activation.apply(own, jnp.asarray(y[None], jnp.float32), None))
        np.testing.assert_allclose(np.asarray(x), expected, rtol=2e-3, atol=2e-3)


def test_large_maps_are_counted_and_resized_in_bfloat16_as_in_float32():
    mask = jnp.ones((1, 50, 84), bool)
    ones = jnp.ones((1, 50, 84, 2), jnp.bfloat16)
    assert np.all(jax.jit(own_mean)(ones, mask) == 1) and np.all(jax.jit(own_mean)(ones, None) == 1)
    ramp = jnp.broadcast_to(jnp.arange(84.0)[:, None], (1, 50, 84, 2))
    more = jnp.ones((1, 100, 168), bool)
    exact = resize_own(ramp, mask, (100, 168), more)
    found = resize_own(ramp.astype(jnp.bfloat16), mask, (100, 168), more).astype(jnp.float32)
    # 8 bits: a value of 64 to 128 is rounded to the nearest half
    np.testing.assert_allclose(found, exact, atol=0.26)


def randomly(variables, seed=5):
    """Variables of the same shapes, none of them 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), variables)


def test_an_image_gets_the_same_alone_and_padded(head_case):
    head, variables, features, masks = head_case
    variables = randomly(variables)
    apply = jax.jit(lambda f, m: head.apply(variables, f, m, train=True))
    widths = [x.shape[2] - x.shape[2] // 3 for x in features]
    own = tuple(x[1:, :, :w] for x, w in zip(features, widths, strict=True))
    alone, padded = apply(own, (None, None)), apply(features, masks)
    pairs = list(zip(jax.tree.leaves(alone), jax.tree.leaves(padded), strict=True))
    for x, y in pairs:
        np.testing.assert_allclose(x, y[1:, :, : x.shape[2]], rtol=2e-4, atol=2e-5)
    assert len(pairs) >= 4


@pytest.mark.parametrize("scale", ["level_scale", "refinement_scale"])
def test_every_level_has_its_own_scale(scale):
    config = ModelConfig(head_convs=1, fpn_channels=8, centerness="none", **HEADS["vfnet"])
    head = Head(config, 3)
    features = tuple(jnp.ones((1, s, s, 8)) for s in (4, 2))
    variables = randomly(head.init(jax.random.key(0), features, (None, None)))
    before = head.apply(variables, features, (None, None))
    variables["params"][scale] = variables["params"][scale].at[1].add(0.5)
    after = head.apply(variables, features, (None, None))
    same = [np.array_equal(x, y) for x, y in zip(before[1], after[1], strict=True)]
    assert same == [True, False]


def applied(head: Head, params: Any, features: tuple[Any, ...], *, train: bool = False) -> Any:
    """Its outputs for features without padding."""
    return head.apply({"params": params}, features, (None,) * len(features), train=train)


def star_head():
    config = ModelConfig(head_convs=1, fpn_channels=8, centerness="none", **HEADS["vfnet"])
    head, values = Head(config, 3), np.random.default_rng(6).normal(size=(1, 5, 5, 8))
    features = (jnp.asarray(values, jnp.float32),)
    return head, features, head.init(jax.random.key(0), features, (None,))


def test_refined_boxes_are_factors_on_first_boxes_that_get_no_gradient_through_them():
    head, features, variables = star_head()
    start = applied(head, variables["params"], jax.tree.map(jnp.zeros_like, features), train=True)
    np.testing.assert_allclose(start.first_boxes[0], 4, rtol=1e-6)  # strides a side
    np.testing.assert_allclose(start.box_regression[0], 4, rtol=1e-6)
    variables = randomly(variables)
    sampled = ("cls_star", "box_star")
    for name in sampled:  # nothing is read on the box: no gradient through its sampling places
        variables["params"][name]["kernel"] *= 0

    def refined(params):
        return jnp.sum(applied(head, params, features).box_regression[0])

    gradient = jax.grad(refined)(variables["params"])
    assert not any(np.any(x) for x in jax.tree.leaves(gradient["box_regression"]))
    assert np.any(gradient["box_refinement"]["bias"])


def test_scores_are_read_on_the_box_which_gets_a_tenth_of_their_gradient():
    head, features, variables = star_head()
    variables = randomly(variables)

    def scores(params, share):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(star_refinement, "GRADIENT_SHARE", share)
            return jnp.sum(applied(head, params, features).cls_logits[0])

    own, full, none = (
        jax.grad(scores)(variables["params"], share)["box_regression"]["kernel"]
        for share in (star_refinement.GRADIENT_SHARE, 1.0, 0.0)
    )
    assert np.any(full) and not np.any(none)
    np.testing.assert_allclose(own, 0.1 * full, rtol=1e-4, atol=1e-7)


def test_the_quality_of_a_box_teaches_its_distributions():
    config = ModelConfig(head_convs=1, fpn_channels=8, centerness="none", **HEADS["gflv2"])
    head = Head(config, 3)
    features = (jnp.asarray(np.random.default_rng(7).normal(size=(1, 3, 3, 8)), jnp.float32),)
    variables = randomly(head.init(jax.random.key(0), features, (None,)))
    gradient = jax.grad(lambda params: jnp.sum(applied(head, params, features).cls_logits[0]))(
        variables["params"]
    )
    assert np.any(gradient["box_regression"]["kernel"])
