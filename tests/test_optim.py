"""The schedule against the official curve, the optimizer against PyTorch's rule by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.training import optim

PARAMS: Any = {
    "backbone": {"stem": {"kernel": np.array([1.0, -2.0], np.float32)}},
    "head": {
        "norm": {"scale": np.array([1.0], np.float32), "bias": np.array([0.5], np.float32)},
        "conv": {"kernel": np.array([3.0], np.float32), "bias": np.array([-1.0], np.float32)},
    },
}
FROZEN: Any = {
    "backbone": {"stem": {"kernel": True}},
    "head": {"norm": {"scale": False, "bias": False}, "conv": {"kernel": False, "bias": False}},
}


def make(schedule=lambda step: 0.1, **keywords) -> Any:
    return optim.make_optimizer(
        PARAMS, FROZEN, name="sgd", schedule=schedule, weight_decay=0.01, **keywords
    )


def test_sgd_is_torchs_with_the_official_groups():
    """v = m v + (g + wd w); w -= lr v; biases twice the rate, no decay; frozen parts stay."""
    optimizer, rng = make(), np.random.default_rng(0)
    params, state = PARAMS, optimizer.init(PARAMS)
    expected = jax.tree.map(lambda p: p.astype(np.float64), PARAMS)
    velocity = jax.tree.map(np.zeros_like, expected)
    for _ in range(5):
        gradients = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for layer in ("norm", "conv"):
            for name, weight in expected["head"][layer].items():
                bias = name == "bias"
                gradient = gradients["head"][layer][name] + (0 if bias else 0.01) * weight
                v = 0.9 * velocity["head"][layer][name] + gradient
                velocity["head"][layer][name] = v
                expected["head"][layer][name] = weight - (0.2 if bias else 0.1) * v
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)
    np.testing.assert_array_equal(
        params["backbone"]["stem"]["kernel"], PARAMS["backbone"]["stem"]["kernel"]
    )


def test_frozen_parameters_have_no_optimizer_state():
    sizes = [leaf.size for leaf in jax.tree.leaves(make().init(PARAMS)) if leaf.ndim]
    assert sum(sizes) == 4  # scale, bias, kernel, bias of the head


def test_clipping_counts_trained_gradients_only():
    gradients = jax.tree.map(np.ones_like, PARAMS)
    gradients["backbone"]["stem"]["kernel"][:] = 1e6
    norm = optim.global_norm(gradients, FROZEN)
    np.testing.assert_allclose(norm, 2.0)
    optimizer = make(clip_norm=1.0)
    updates: Any = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(updates["head"]["conv"]["bias"], -0.2 * 0.5, rtol=1e-6)


def test_adamw_decays_weights_apart_from_the_gradient():
    optimizer: Any = optim.make_optimizer(
        PARAMS, FROZEN, name="adamw", schedule=lambda step: 0.1, weight_decay=0.01
    )
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    updates: Any = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(updates["head"]["conv"]["kernel"], -0.1 * 0.01 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["conv"]["bias"], 0.0)


@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_schedule_equals_the_official_curve(shared, warmup):
    wanted = np.load(shared / "golden" / "misc.npz")[f"lr_{warmup}_warm20_steps60_80"]
    schedule = optim.make_schedule(
        learning_rate=0.01,
        kind="steps",
        num_steps=100,
        decay_steps=(60, 80),
        warmup_steps=20,
        warmup=warmup,
    )
    got = np.array([schedule(step) for step in range(100)])
    np.testing.assert_allclose(got, wanted[:, 0], rtol=1e-6)
    np.testing.assert_allclose(2 * got, wanted[:, 1], rtol=1e-6)


def test_schedule_by_hand():
    """The official constant warm-up at a third, then x0.1 at each boundary."""
    schedule = optim.make_schedule(
        learning_rate=0.01, kind="steps", num_steps=10, decay_steps=(6, 8), warmup_steps=2
    )
    rates = [float(schedule(s)) for s in range(10)]
    np.testing.assert_allclose(rates, [0.01 / 3] * 2 + [0.01] * 4 + [1e-3] * 2 + [1e-4] * 2, 1e-6)


def test_cosine_ends_at_zero():
    schedule = optim.make_schedule(
        learning_rate=1.0, kind="cosine", num_steps=100, warmup_steps=10, warmup="linear"
    )
    np.testing.assert_allclose([schedule(10), schedule(55), schedule(100)], [1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    "scaling, batch, expected", [("linear", 8, 0.005), ("none", 8, 0.01), ("refuse", 16, 0.01)]
)
def test_learning_rate_scaling(scaling, batch, expected):
    rate = optim.scaled_learning_rate(0.01, global_batch=batch, reference_batch=16, scaling=scaling)
    assert rate == pytest.approx(expected)


def test_bad_arguments_say_what_is_allowed():
    with pytest.raises(ValueError, match="16 images a step"):
        optim.scaled_learning_rate(0.01, global_batch=8, reference_batch=16, scaling="refuse")
    with pytest.raises(ValueError, match='"steps" or "cosine"'):
        optim.make_schedule(learning_rate=1.0, kind="step", num_steps=1)
    with pytest.raises(ValueError, match="must rise"):
        optim.make_schedule(learning_rate=1.0, kind="steps", num_steps=9, decay_steps=(5, 3))
    with pytest.raises(ValueError, match='"sgd" or "adamw"'):
        optim.make_optimizer(PARAMS, FROZEN, name="adam", schedule=lambda s: 0.1, weight_decay=0.0)


def test_ema_follows_and_starts_fast():
    ema = {"w": jnp.zeros(2)}
    first = optim.update_ema(ema, {"w": jnp.ones(2)}, decay=0.999, step=jnp.int32(0))
    np.testing.assert_allclose(first["w"], 0.9)  # 1 - 1 / 10
    late = optim.update_ema(ema, {"w": jnp.ones(2)}, decay=0.9, step=jnp.int32(10**6))
    np.testing.assert_allclose(late["w"], 0.1, rtol=1e-6)
