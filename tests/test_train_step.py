"""One step: the same on one and on many devices, whole or in parts; nothing bad gets in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from atss_jax.data import loader
from atss_jax.models.detector import init_variables
from atss_jax.run import training_setup
from atss_jax.run.ahead import costs, hlo_text
from atss_jax.runtime import parallel
from atss_jax.training import train_step
from tests import tiny

pytestmark = pytest.mark.slow

NUM_STEPS = 10


def mesh_of(count):
    return jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


@pytest.fixture(scope="module")
def run(folder):
    """Runs the tiny recipe's first steps: (number of devices, fsdp, changes) -> metrics, state."""
    done, compiled_steps, initial = {}, {}, {}

    def train(devices, *, fsdp=False, corrupt=None, steps=NUM_STEPS, **changes):
        key = (devices, fsdp, corrupt, steps, tuple(changes.items()))
        if key in done:
            return done[key]
        # Slow learning: rounding decides the sign of one activation or another, and its effect on
        # a gradient, up to 1e-3, must not grow over the steps.
        config = tiny.make_config(folder, optim__learning_rate=1e-4, **changes)
        mesh = mesh_of(devices)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "make_mesh", lambda: mesh)
            parts = training_setup.set_up(config)
        network = (config.model.backbone_norm, config.model.centerness)
        if network not in initial:
            init = jax.jit(lambda: init_variables(parts.settings.model, config.data.buckets[0], 0))
            initial[network] = jax.device_get(init())
        state = train_step.init_state(parts.settings, initial[network])
        shardings = parallel.state_shardings(state, mesh, fsdp=fsdp)
        state = jax.device_put(state, shardings)
        step = compiled_steps.setdefault(
            (devices, fsdp, tuple(changes.items())),
            train_step.make_train_step(parts.settings, mesh, shardings),
        )
        metrics = []
        for number in range(steps):
            batch = loader.batch_at(parts.train_set, parts.plan, number, max_boxes=16)
            if corrupt is not None and number == 1:
                batch = corrupt(batch)
            state, out = step(state, parallel.shard_batch(batch, mesh))
            metrics.append(jax.device_get(out))
        done[key] = metrics, jax.device_get(state)
        return done[key]

    return train


def assert_same_training(one, other):
    """Equal losses, numbers of positives and parameters; equal momenta: sums of gradients."""
    (metrics, state), (other_metrics, other_state) = one, other
    for a, b in zip(metrics, other_metrics, strict=True):
        assert a["num_positives"] == b["num_positives"] > 0
        for name in ("loss", "loss_cls", "loss_box", "loss_centerness"):
            # sums in another order: 1.03e-5 on one CPU
            np.testing.assert_allclose(b[name], a[name], rtol=3e-5)
    momenta, others = (momenta_of(s) for s in (state, other_state))
    whole = np.sqrt(sum(np.sum(np.square(m)) for m in momenta.values()))
    assert momenta.keys() == others.keys() and whole > 0
    for name, momentum in momenta.items():
        difference = np.linalg.norm(others[name] - momentum)
        assert difference <= 0.05 * np.linalg.norm(momentum) + 1e-5 * whole, name
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(other_state.params), strict=True
    ):
        np.testing.assert_allclose(b, a, atol=1e-5)


def momenta_of(state):
    """Momentum of every parameter, by name."""
    trace = optax.tree.get(state.opt_state, "trace")
    return {jax.tree_util.keystr(p): m for p, m in jax.tree_util.tree_leaves_with_path(trace)}


@pytest.mark.parametrize("devices, fsdp", [(4, False), (8, True)])
def test_number_of_devices_does_not_matter(run, devices, fsdp):
    assert_same_training(run(1), run(devices, fsdp=fsdp))


def test_split_parameters_are_gathered_once(folder, monkeypatch):
    """And not for each level of the pyramid, or again in the backward pass."""
    mesh = mesh_of(8)
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    config = tiny.make_config(folder, run__fsdp=True, data__global_batch=8)
    parts = training_setup.set_up(config)
    batch = loader.batch_at(parts.train_set, parts.plan, 0, max_boxes=16)
    step: Any = train_step.make_train_step(parts.settings, mesh, parts.shardings)
    program = step.lower(parts.abstract_state, parallel.shard_batch(batch, mesh)).compile()
    gathered = sum(
        found["mib"] * 2**20
        for found in costs.collectives(hlo_text.parse(program.as_text()))
        if found["kind"] == "all-gather"
    )
    leaves = jax.tree.leaves(parts.abstract_state.params)
    split = sum(4 * x.size for x in leaves if not x.sharding.is_fully_replicated)
    assert 0.95 < gathered / split < 1.05


def test_accumulation_is_the_whole_batch(run):
    """A frozen batch norm, so that no statistics depend on the micro-batch."""
    frozen = {"model__backbone_norm": "frozen_bn"}
    whole = run(1, steps=2, **frozen)
    assert_same_training(whole, run(1, steps=2, **frozen, optim__accumulate=4))


def nan_boxes(batch):
    boxes = batch.ground_truth.boxes.copy()
    boxes[0, 0] = np.nan
    return batch._replace(ground_truth=batch.ground_truth._replace(boxes=boxes))


def infinite_scale_boxes(batch):
    boxes = batch.ground_truth.boxes.copy()
    boxes[:, :, 2:] = np.inf
    return batch._replace(ground_truth=batch.ground_truth._replace(boxes=boxes))


@pytest.mark.parametrize("corrupt", [nan_boxes, infinite_scale_boxes])
def test_bad_boxes_never_reach_the_parameters(run, corrupt):
    metrics, state = run(1, corrupt=corrupt, steps=3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert metrics[2]["is_finite"] and np.isfinite(metrics[2]["loss"])


def test_nan_weights_skip_the_update_and_keep_everything(folder):
    """A non-finite gradient leaves parameters, optimizer and statistics as they were."""
    config = tiny.make_config(folder)
    parts = training_setup.set_up(config)
    variables = jax.jit(lambda: init_variables(parts.settings.model, config.data.buckets[0], 0))()
    state = train_step.init_state(parts.settings, variables)
    metrics_like = train_step.Losses(*(jnp.array(v) for v in (np.nan, 1.0, 1.0, 1.0, 3.0)))
    ones = jax.tree.map(jnp.ones_like, state.params)
    update = jax.jit(functools.partial(train_step.update_state, parts.settings))
    new, metrics = update(state, ones, metrics_like, state.batch_stats)
    assert not metrics["is_finite"] and int(new.step) == 1
    for a, b in zip(jax.tree.leaves(new[1:]), jax.tree.leaves(state[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.inf), ones)
    fine = metrics_like._replace(total=jnp.array(1.0))
    new, metrics = update(state, bad, fine, state.batch_stats)
    assert not metrics["is_finite"]
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_skipped_step_does_not_shift_the_schedule(folder):
    """The rate that is applied is the rate that is reported, also after a skipped step."""
    config = tiny.make_config(
        folder, optim__warmup_steps=0, optim__num_steps=4, optim__momentum=0.0
    )
    parts = training_setup.set_up(config)
    settings = parts.settings._replace(schedule=lambda step: 0.1 * (step + 1.0))
    params = {"w": jnp.zeros(3)}
    frozen = {"w": False}
    optimizer = train_step.optim.make_optimizer(params, frozen, config.optim, settings.schedule)
    settings = settings._replace(optimizer=optimizer, frozen=frozen)
    state = train_step.TrainState(jnp.int32(0), params, {}, optimizer.init(params), None)
    losses = train_step.Losses(*(jnp.array(1.0) for _ in range(5)))
    ones = {"w": jnp.ones(3)}
    for gradients in ({"w": jnp.full(3, jnp.nan)}, ones):
        before = state.params["w"]
        state, metrics = train_step.update_state(settings, state, gradients, losses, {})
    np.testing.assert_allclose(metrics["learning_rate"], 0.2)
    decay = config.optim.weight_decay * before
    np.testing.assert_allclose(before - state.params["w"], 0.2 * (1 + decay), rtol=1e-6)


def test_averages_include_trained_statistics(folder, run):
    _, state = run(1, steps=2, model__backbone_norm="batch_norm", optim__ema_decay=0.5)
    assert state.ema_batch_stats is not None
    variables = train_step.eval_variables(state)
    assert variables["batch_stats"] is state.ema_batch_stats
    pairs = zip(
        jax.tree.leaves(state.ema_batch_stats), jax.tree.leaves(state.batch_stats), strict=True
    )
    assert any(not np.allclose(a, b, rtol=1e-6) for a, b in pairs)
    # The first update keeps 0.1 of the start, the second 2 / 11 of that average.
    _, start = run(1, steps=0, model__backbone_norm="batch_norm", optim__ema_decay=0.5)
    _, first = run(1, steps=1, model__backbone_norm="batch_norm", optim__ema_decay=0.5)

    def by_hand(s, a, b):
        return (s * 0.1 + a * 0.9) * 2 / 11 + b * 9 / 11

    expected = jax.tree.map(by_hand, start.batch_stats, first.batch_stats, state.batch_stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.ema_batch_stats,
        expected,
    )


def test_checkpoints_without_averaged_statistics_keep_their_entries(run):
    _, state = run(1, steps=1, model__backbone_norm="frozen_bn", optim__ema_decay=0.5)
    names = {"step", "params", "batch_stats", "opt_state", "ema_params"}
    assert set(train_step.state_dict(state)) == names
    averaged = state._replace(ema_batch_stats=state.batch_stats)
    assert set(train_step.state_dict(averaged)) == names | {"ema_batch_stats"}


TASK_ALIGNED = {"assigner__name": "task_aligned", "model__backbone_norm": "frozen_bn"}


def test_predictions_decide_the_targets(run):
    metrics, _ = run(1, steps=2, **TASK_ALIGNED)
    assert all(m["is_finite"] and m["num_positives"] > 0 for m in metrics)
    static, _ = run(1, steps=2, model__backbone_norm="frozen_bn")
    assert metrics[0]["num_positives"] != static[0]["num_positives"]


QUALITY = {
    **{"loss__cls_loss": "quality_focal", "loss__box_weights": "score", "eval__score": "cls"},
    **{"model__centerness": "none", "model__backbone_norm": "frozen_bn"},
}


@pytest.mark.parametrize(
    "fields",
    [TASK_ALIGNED, pytest.param(QUALITY, marks=pytest.mark.slow)],
    ids=["task-aligned", "weights by score"],
)
def test_accumulation_is_the_whole_batch_for_predictions_too(run, fields):
    whole, parts = (run(1, steps=1, **fields, optim__accumulate=n) for n in (1, 4))
    assert whole[0][0]["num_positives"] == parts[0][0]["num_positives"] > 0
    for name in ("loss", "loss_cls", "loss_box", "loss_centerness", "grad_norm"):
        np.testing.assert_allclose(parts[0][0][name], whole[0][0][name], rtol=1e-5, err_msg=name)
    momenta, others = momenta_of(whole[1]), momenta_of(parts[1])
    largest = max(np.abs(m).max() for m in momenta.values())
    for name, momentum in momenta.items():
        np.testing.assert_allclose(others[name], momentum, atol=1e-5 * largest, err_msg=name)
    # Another count of devices: the assignment inside the loss function stays local.
    assert_same_training(whole, run(4, steps=1, **fields))


def test_atss_assigns_until_the_warm_up_is_over(run):
    """The first step is ATSS' to the last bit of its counts, the second is not."""
    static, _ = run(1, steps=2, model__backbone_norm="frozen_bn")
    aligned, _ = run(1, steps=1, **TASK_ALIGNED)
    metrics, _ = run(1, steps=2, **TASK_ALIGNED, assigner__warmup_steps=1)
    assert metrics[0]["num_positives"] == static[0]["num_positives"] != aligned[0]["num_positives"]
    np.testing.assert_allclose(metrics[0]["loss"], static[0]["loss"], rtol=1e-6)
    assert metrics[1]["num_positives"] not in (0, static[1]["num_positives"])
    parts, _ = run(1, steps=2, **TASK_ALIGNED, assigner__warmup_steps=1, optim__accumulate=2)
    for one, other in zip(metrics, parts, strict=True):
        assert one["num_positives"] == other["num_positives"]
