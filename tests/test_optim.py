"""The schedule against the official curve, the optimizer against PyTorch's rule by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atss_jax.errors import UserError
from atss_jax.training import optim
from atss_jax.training.config import OptimConfig

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


def make(schedule=lambda step: 0.1, **fields) -> Any:
    config = OptimConfig(**{"weight_decay": 0.01, **fields})
    return optim.make_optimizer(PARAMS, FROZEN, config, schedule)


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
    optimizer = make(name="adamw")
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    updates: Any = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(updates["head"]["conv"]["kernel"], -0.1 * 0.01 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["conv"]["bias"], 0.0)


@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_schedule_equals_the_official_curve(shared, warmup):
    wanted = np.load(shared / "golden" / "misc.npz")[f"lr_{warmup}_warm20_steps60_80"]
    config = OptimConfig(decay_at=(0.6, 0.8), warmup_steps=20, warmup=warmup)
    schedule = optim.make_schedule(config, 16, 100)
    got = np.array([schedule(step) for step in range(100)])
    np.testing.assert_allclose(got, wanted[:, 0], rtol=1e-6)
    np.testing.assert_allclose(2 * got, wanted[:, 1], rtol=1e-6)


def test_schedule_by_hand():
    """The official constant warm-up at a third, then x0.1 at each boundary."""
    config = OptimConfig(decay_at=(0.6, 0.8), warmup_steps=2)
    schedule = optim.make_schedule(config, 16, 10)
    rates = [float(schedule(s)) for s in range(10)]
    np.testing.assert_allclose(rates, [0.01 / 3] * 2 + [0.01] * 4 + [1e-3] * 2 + [1e-4] * 2, 1e-6)


def test_cosine_ends_at_zero():
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10, warmup="linear")
    schedule = optim.make_schedule(config, 16, 100)
    np.testing.assert_allclose([schedule(10), schedule(55), schedule(100)], [1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    "scaling, batch, expected", [("linear", 8, 0.005), ("none", 8, 0.01), ("refuse", 16, 0.01)]
)
def test_learning_rate_scaling(scaling, batch, expected):
    rate = optim.scaled_learning_rate(0.01, global_batch=batch, reference_batch=16, scaling=scaling)
    assert rate == pytest.approx(expected)


def test_bad_arguments_say_what_is_allowed():
    with pytest.raises(UserError, match="16 images per step"):
        optim.scaled_learning_rate(0.01, global_batch=8, reference_batch=16, scaling="refuse")
    with pytest.raises(UserError, match="Did you mean 'lion'"):
        make(name="lionn")
    for name in ("lbfgs", "sm3"):
        with pytest.raises(UserError, match="more than gradients"):
            make(name=name)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_a_schedule(steps):
    """Both decays may come at one step, and warm-up takes at most half of the run."""
    rates = [float(optim.make_schedule(OptimConfig(), 16, steps)(s)) for s in range(steps)]
    assert rates[-1] <= 0.01 and np.all(np.array(rates) > 0)


def test_length_in_steps_or_epochs():
    assert optim.num_steps(OptimConfig(num_steps=7), 3.5) == 7
    assert optim.num_steps(OptimConfig(num_steps=0, num_epochs=2.0), 3.5) == 7
    assert optim.num_steps(OptimConfig(num_steps=0, num_epochs=0.01), 3.5) == 1


def first_update(optimizer, gradients):
    updates: Any = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(
        gradients, PARAMS
    )
    return updates


def test_optimizers_of_optax_by_name():
    """They differ from each other; biases learn at their own rate; frozen parameters stay."""
    gradients = jax.tree.map(lambda p: 0.3 * p + 0.2, PARAMS)
    found = {}
    for name in ("lion", "lamb", "adafactor", "rmsprop", "adabelief", "adam"):
        updates = first_update(make(name=name), gradients)
        assert not np.any(updates["backbone"]["stem"]["kernel"])
        leaves = np.concatenate(jax.tree.leaves(updates["head"]))
        assert np.isfinite(leaves).all() and np.all(leaves != 0), name
        slow = first_update(make(name=name, bias_lr_factor=1.0), gradients)
        for layer in ("norm", "conv"):
            np.testing.assert_allclose(
                updates["head"][layer]["bias"], 2 * slow["head"][layer]["bias"], rtol=1e-5
            )
        np.testing.assert_array_equal(
            updates["head"]["conv"]["kernel"], slow["head"]["conv"]["kernel"]
        )
        found[name] = leaves
    for name in ("lamb", "adafactor", "rmsprop"):
        assert not np.allclose(found["lion"], found[name], rtol=1e-3), name


def test_decay_by_name_is_an_argument_or_joins_the_gradient():
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    lion = first_update(make(name="lion"), zeros)["head"]
    np.testing.assert_allclose(lion["conv"]["kernel"], -0.1 * 0.01 * 3.0, rtol=1e-6)
    assert lion["conv"]["bias"] == 0
    adam = first_update(make(name="adam"), zeros)["head"]  # decay is the whole gradient
    np.testing.assert_allclose(adam["conv"]["kernel"], -0.1, rtol=1e-4)
    assert adam["conv"]["bias"] == 0


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion"])
def test_rate_is_that_of_the_step(name):
    """The state of a fresh optimizer, set to a step, applies the step's rate."""
    optimizer = make(lambda step: 0.1 * (step + 1.0), name=name, weight_decay=0.0)
    gradients = jax.tree.map(np.ones_like, PARAMS)
    state = optimizer.init(PARAMS)
    first: Any = optimizer.update(gradients, state, PARAMS)[0]
    fifth: Any = optimizer.update(gradients, optim.at_step(state, jnp.int32(4)), PARAMS)[0]
    for a, b in zip(jax.tree.leaves(first["head"]), jax.tree.leaves(fifth["head"]), strict=True):
        np.testing.assert_allclose(b, 5 * a, rtol=1e-5)
    same = jax.tree.structure(state) == jax.tree.structure(optim.at_step(state, jnp.int32(4)))
    assert same


def test_ema_follows_and_starts_fast():
    ema = {"w": jnp.zeros(2)}
    first = optim.update_ema(ema, {"w": jnp.ones(2)}, decay=0.999, step=jnp.int32(0))
    np.testing.assert_allclose(first["w"], 0.9)  # 1 - 1 / 10
    late = optim.update_ema(ema, {"w": jnp.ones(2)}, decay=0.9, step=jnp.int32(10**6))
    np.testing.assert_allclose(late["w"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_norms_decay_unless_the_recipe_says_no(name):
    params = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}, "conv": {"kernel": jnp.ones(2)}}
    frozen = jax.tree.map(lambda _: False, params)

    def moved(decay_norms):
        config = OptimConfig(name=name, weight_decay=0.1, decay_norms=decay_norms)
        optimizer = optim.make_optimizer(params, frozen, config, lambda step: 0.5)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        return jax.tree.map(lambda u: float(u[0]), updates)

    decayed, kept = moved(True), moved(False)
    assert decayed["conv"] == kept["conv"] == {"kernel": pytest.approx(-0.05)}
    assert decayed["norm"] == {"scale": pytest.approx(-0.05), "bias": 0.0}
    assert kept["norm"] == {"scale": 0.0, "bias": 0.0}
