"""One step: the same on one and on many devices, whole or in parts; nothing bad gets in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from atss_jax.data import loader
from atss_jax.run import build, training_setup
from atss_jax.runtime import parallel
from atss_jax.training import train_step
from tests import tiny

pytestmark = pytest.mark.slow

NUM_STEPS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    tiny.make_coco(path)
    tiny.make_coco(path, 6, "val")
    return path


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
        norm = config.model.backbone_norm
        if norm not in initial:
            init = jax.jit(lambda: build.init_variables(config, parts.settings.model, 0))
            initial[norm] = jax.device_get(init())
        state = train_step.init_state(parts.settings, initial[norm])
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
        assert a.num_positives == b.num_positives > 0
        for name in ("loss", "loss_cls", "loss_box", "loss_centerness"):
            np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-5)
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
    assert metrics[2].is_finite and np.isfinite(metrics[2].loss)


def test_nan_weights_skip_the_update_and_keep_everything(folder):
    """A non-finite gradient leaves parameters, optimizer and statistics as they were."""
    config = tiny.make_config(folder)
    parts = training_setup.set_up(config)
    variables = jax.jit(lambda: build.init_variables(config, parts.settings.model, 0))()
    state = train_step.init_state(parts.settings, variables)
    metrics_like = train_step.Losses(*(jnp.array(v) for v in (np.nan, 1.0, 1.0, 1.0, 3.0)))
    ones = jax.tree.map(jnp.ones_like, state.params)
    update = jax.jit(functools.partial(train_step._update, parts.settings))
    new, metrics = update(state, ones, metrics_like, state.batch_stats, jnp.array(3.0))
    assert not metrics.is_finite and int(new.step) == 1
    for a, b in zip(jax.tree.leaves(new[1:]), jax.tree.leaves(state[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.inf), ones)
    fine = metrics_like._replace(total=jnp.array(1.0))
    new, metrics = update(state, bad, fine, state.batch_stats, jnp.array(3.0))
    assert not metrics.is_finite
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_assignment_by_predictions_is_the_same_in_parts_and_on_several_devices(run):
    """Positives and normalisers are those of the whole batch, however it is split."""
    changes = {"assigner__name": "task_aligned", "model__backbone_norm": "frozen_bn"}
    whole, _ = run(1, steps=2, **changes)
    parts, _ = run(1, steps=2, optim__accumulate=4, **changes)
    devices, _ = run(4, steps=2, **changes)
    for step in range(2):
        assert whole[step].num_positives > 0
        for other in (parts, devices):
            assert other[step].num_positives == whole[step].num_positives
            np.testing.assert_allclose(other[step].loss, whole[step].loss, rtol=1e-5)
            np.testing.assert_allclose(other[step].grad_norm, whole[step].grad_norm, rtol=1e-3)
