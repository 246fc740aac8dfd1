"""Checks of a small detector whose numbers are known: forward, gradients, update and what follows.

Weights, images and objects are made by rules in NumPy, so every device sees the same ones.
`golden.npz` holds what this network gives in float64 (`tests/oracles/write_selftest_golden.py`),
the type in which it equals the official implementation (`tests/test_trajectory.py`).
"""

import dataclasses
import functools
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from atss_jax.assigners.registry import make_assigner
from atss_jax.models.detector import (
    DetectorNetwork,
    frozen_mask,
    init_variables,
    normalize_images,
)
from atss_jax.run import predict_steps
from atss_jax.run.recipe import Recipe
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.structures import Batch, GroundTruth
from atss_jax.training import optim, train_step
from atss_jax.training.losses import make_losses

TOLERANCES = {"outputs": 1e-3, "losses": 1e-4, "gradients": 3e-2, "update": 3e-2}
"""Of float32; rounding decides the sign of a few activations, and so of parts of gradients."""
BFLOAT16_TOLERANCES = {"outputs": 0.15, "losses": 0.05}
"""Eight bits of mantissa through twenty layers."""
SIZE = (128, 192)
NUM_CLASSES = 3
SAMPLES = 24
"""Values of each array that are compared."""


def make_recipe(dtype: str = "float32") -> Recipe:
    """ATSS with a narrow ResNet-18 whose batch norm is trained: everything has a gradient."""
    base = Recipe()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, buckets=(SIZE,), short_side=128, max_long_side=192),
        model=dataclasses.replace(
            base.model,
            backbone="resnet18",
            flavour="torchvision",
            backbone_norm="batch_norm",
            width=0.25,
            stem_channels=16,
            frozen_stages=0,
            init_from="",
            fpn_channels=128,
            head_convs=1,
            dtype=dtype,
        ),
        optim=dataclasses.replace(base.optim, num_steps=10, warmup_steps=0, lr_scaling="none"),
    )


def make_network(recipe: Recipe, dtype: Any = None) -> DetectorNetwork:
    """The recipe's network; `dtype` replaces the recipe's."""
    return DetectorNetwork(recipe.model, NUM_CLASSES, recipe.anchors.num_per_location, dtype)


def make_variables(network: DetectorNetwork, dtype: Any) -> Any:
    """Weights drawn by a rule from the names of the parameters."""

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if leaf.ndim > 1:
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0.0, deviation, leaf.shape).astype(np.float32).astype(dtype)
        low = 0.5 if "scale" in name or "var" in name else -0.5
        return rng.uniform(low, low + 1, leaf.shape).astype(np.float32).astype(dtype)

    shapes = jax.eval_shape(lambda: init_variables(network, SIZE, 0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_batch() -> Batch:
    """Two images of noise with three objects each; the second has padding."""
    rng = np.random.default_rng(7)
    sizes = np.array([SIZE, (100, 150)], np.int32)
    images = np.zeros((2, *SIZE, 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[:, :3] = [[8, 10, 40, 44], [30, 20, 98, 77], [61, 5, 80, 21]]
    labels = np.array([[0, 1, 2, 0], [2, 0, 1, 0]], np.int32)
    objects = GroundTruth(boxes, labels, np.array([[True, True, True, False]] * 2))
    return Batch(images, sizes, objects, np.arange(2, dtype=np.int32), np.ones((2, 2), np.float32))


def make_settings(dtype: Any, word: str = "float32") -> train_step.StepSettings:
    """The constants of a training step of `make_recipe(word)`.

    Args:
      dtype: of the variables, and of the network unless `word` is "bfloat16".
      word: compute type of the recipe.
    """
    recipe = make_recipe(word)
    network = make_network(recipe, None if word == "bfloat16" else dtype)
    params = jax.eval_shape(lambda: init_variables(network, SIZE, 0))["params"]
    frozen = frozen_mask(params, recipe.model)
    schedule = optim.make_schedule(recipe.optim, 2, recipe.optim.num_steps)
    return train_step.StepSettings(
        model=network,
        anchors=recipe.anchors,
        assign=make_assigner(recipe.assigner),
        optimizer=optim.make_optimizer(params, frozen, recipe.optim, schedule),
        schedule=schedule,
        frozen=frozen,
        normalization=predict_steps.normalization(recipe),
        loss=make_losses(recipe.loss, recipe.model.regression),
    )


@functools.cache
def run_step(dtype: Any, word: str = "float32") -> tuple[dict[str, list[np.ndarray]], Any]:
    """One forward pass and one update, as arrays by the names of `TOLERANCES`; and the new state.

    In bfloat16 the compiler leaves the unused gradients out: outputs and losses only, and no state.

    Args:
      dtype: of the variables; float64 for the golden values.
      word: compute type of the recipe.
    """
    settings = make_settings(dtype, word)
    network, variables = settings.model, make_variables(settings.model, dtype)

    @jax.jit
    def step(variables: Any, batch: Batch) -> Any:
        images = normalize_images(batch.image, batch.image_size, **settings.normalization._asdict())
        outputs, _ = network.apply(
            variables, images, batch.image_size, train=True, mutable=["batch_stats"]
        )
        state = train_step.init_state(settings, variables)
        state, metrics = train_step.train_step(settings, None, state, batch)
        if word == "bfloat16":
            return outputs, list(metrics.values())[:5], None
        return outputs, list(metrics.values())[:6], state

    with jax.default_matmul_precision("default" if word == "bfloat16" else "highest"):
        outputs, losses, state = jax.device_get(step(variables, make_batch()))
    groups = {"outputs": outputs, "losses": losses}
    if state is not None:
        # momenta after one step: gradients and weight decay
        groups["gradients"] = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == dtype]
        groups["update"] = jax.tree.map(lambda a, b: a - b, state.params, variables["params"])
    return {name: [np.asarray(x) for x in jax.tree.leaves(g)] for name, g in groups.items()}, state


def sample(arrays: list[np.ndarray]) -> np.ndarray:
    """`SAMPLES` values of each array, evenly spread, [number of arrays, SAMPLES]."""
    rows = [np.ravel(x)[np.linspace(0, x.size - 1, SAMPLES).astype(int)] for x in arrays]
    return np.array(rows, np.float64)


def errors(word: str) -> dict[str, float]:
    """Error of each group: the root mean square, over its arrays, of their relative errors.

    One wrong array of a group of 80 makes it 0.1 or more.
    """
    with Path(__file__).with_name("golden.npz").open("rb") as file:
        golden = dict(np.load(file))
    result = {}
    for name, found in run_step(np.float32, word)[0].items():
        right = golden[name][: len(found)]
        size = np.abs(right).max(axis=1)
        size = np.maximum(size, 0.01 * size.max())  # nearly nothing is measured by the others
        relative = np.abs(sample(found) - right).max(axis=1) / size
        result[name] = float(np.sqrt(np.mean(np.square(relative))))
    return result


def _verdict(word: str, tolerances: dict[str, float]) -> tuple[bool, str]:
    found = errors(word)
    passed = all(found[name] <= limit for name, limit in tolerances.items())
    return passed, ", ".join(f"{name} {found[name]:.1e}" for name in tolerances)


def golden_step() -> tuple[bool, str]:
    """Outputs, losses, gradients and one update in float32 against float64."""
    return _verdict("float32", TOLERANCES)


def bfloat16_step() -> tuple[bool, str]:
    """Outputs and losses in bfloat16 against float64."""
    return _verdict("bfloat16", BFLOAT16_TOLERANCES)


def save_and_restore() -> tuple[bool, str]:
    """The state after the update, through a checkpoint, bit by bit."""
    state = train_step.state_dict(run_step(np.float32)[1])
    shapes = jax.eval_shape(lambda: state)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(folder)
        checkpointer.save(1, jax.device_put(state, sharding), wait=True)
        restored = checkpointer.restore_latest(shapes)
        checkpointer.close()
    assert restored is not None
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored.state), strict=True)
    different = sum(not np.array_equal(a, b) for a, b in pairs)
    return different == 0, f"{different} of {len(jax.tree.leaves(state))} arrays differ"


def export_round_trip() -> tuple[bool, str]:
    """An exported detector, written and read again, against the live one."""
    recipe = make_recipe()
    network, batch = make_network(recipe), make_batch()
    predict = predict_steps.predict_step(recipe, network)
    variables = make_variables(network, np.float32)
    inputs = (batch.image, batch.image_size, batch.scale)
    live = jax.device_get(predict(variables, *inputs))

    def detect(*inputs: Any) -> tuple[Any, ...]:
        return tuple(predict(variables, *inputs))

    content = export.export(jax.jit(detect))(*inputs).serialize()
    program = export.deserialize(content)
    boxes, scores, _, is_valid = (np.asarray(x) for x in program.call(*inputs))
    same = np.array_equal(is_valid, live.is_valid)
    error = float(np.abs(scores - live.scores).max())
    drift = float(np.abs(boxes - live.boxes).max())
    detail = f"{int(is_valid.sum())} detections, scores within {error:.1e}, boxes {drift:.1e} px"
    return same and error < 1e-3 and drift < 0.5, detail


CHECKS = (
    ("network, float32", golden_step),
    ("network, bfloat16", bfloat16_step),
    ("save and restore", save_and_restore),
    ("export round trip", export_round_trip),
)
"""(name, check); a check gives (passed, detail)."""
