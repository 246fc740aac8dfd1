"""What the fields of the mathematical groups become: one fingerprint per component.

A fingerprint is the traced program of a component with its constants, as text. Each component is
built by the package itself from a whole recipe, so a field that is wired to the wrong component
changes the wrong fingerprint.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from atss_jax.assigners.registry import (
    make_assigner,
    make_warmup_assigner,
    needs_predictions,
)
from atss_jax.evaluation.postprocess import make_settings, postprocess
from atss_jax.geometry.anchors import make_grid
from atss_jax.models.detector import DetectorNetwork, frozen_mask, init_variables
from atss_jax.run import training_setup
from atss_jax.run.predict_steps import make_looks
from atss_jax.run.recipe import Recipe
from atss_jax.structures import GroundTruth, HeadOutputs, Predictions
from atss_jax.training import optim
from atss_jax.training.losses import make_losses
from atss_jax.training.targets import assign_targets

SHAPE = (64, 96)
CLASSES = 3
IMAGE_SIZE = jnp.array([60, 90], jnp.int32)
TRUTH = GroundTruth(
    jnp.array([[8, 8, 40, 40], [20, 4, 90, 60], [0, 0, 0, 0]], jnp.float32),
    jnp.array([0, 2, 0], jnp.int32),
    jnp.array([True, True, False]),
)


def program(function, *arguments) -> str:
    """The traced program as text, without addresses of functions, and with its constants."""
    closed = jax.make_jaxpr(function)(*arguments)
    constants = " ".join(
        np.asarray(c).tobytes().hex() for c in closed.consts if hasattr(c, "shape")
    )
    return re.sub(r"0x[0-9a-f]{6,}", "", str(closed)) + constants


def network(recipe: Recipe) -> str:
    """Parameters, their initial values, the forward pass and what is frozen."""
    return _network(recipe.model, recipe.anchors.num_per_location)


@functools.cache
def _network(config, num_anchors) -> str:
    model = DetectorNetwork(config, CLASSES, num_anchors)
    text = program(lambda: init_variables(model, SHAPE, 0))
    variables = jax.eval_shape(lambda: init_variables(model, SHAPE, 0))
    outputs = program(
        lambda v, x: model.apply(v, x, IMAGE_SIZE[None], train=True, mutable=["batch_stats"])[0],
        variables,
        jnp.zeros((1, *SHAPE, 3)),
    )
    return f"{text} {outputs} {frozen_mask(variables['params'], config)}"


def anchor_grid(recipe: Recipe) -> str:
    """The anchors of a shape."""
    return str(make_grid(recipe.anchors, SHAPE).boxes().tolist())


def outputs_of(recipe: Recipe, grid) -> HeadOutputs:
    """Shapes of raw predictions of one image, as the recipe's network gives them."""
    sizes = [(1, h, w, grid.num_per_location) for h, w in grid.level_shapes]
    model = recipe.model

    def maps(*last):
        return tuple(jnp.zeros((*size, *last)) for size in sizes)

    return HeadOutputs(
        maps(CLASSES),
        maps(4),
        None if model.centerness == "none" else maps(),
        maps(4, model.side_bins + 1) if model.side_bins else None,
        maps(4) if model.star_refinement else None,
    )


def assignment(recipe: Recipe) -> str:
    """The assigner, and that of the warm-up."""
    config = recipe.assigner
    return _assignment(config, recipe.anchors) + f" for {config.warmup_steps}"


@functools.cache
def _assignment(config, anchors) -> str:
    grid = make_grid(anchors, SHAPE)
    texts = []
    for assign in (make_assigner(config), make_warmup_assigner(config)):
        if assign is None:
            continue
        looks = ()
        if needs_predictions(assign):
            count = grid.num_anchors
            looks = (Predictions(jnp.zeros((count, CLASSES)), jnp.zeros((count, 4))),)
        call = functools.partial(assign, grid)
        texts.append(program(call, IMAGE_SIZE, TRUTH, *looks))
    return " ".join(texts)


def losses(recipe: Recipe) -> str:
    """The losses and their gradients with respect to raw predictions."""
    return _losses(recipe.loss, recipe.model, recipe.anchors)


@functools.cache
def _losses(config, model, anchors) -> str:
    recipe = Recipe(model=model, anchors=anchors)
    grid = make_grid(anchors, SHAPE)
    loss = make_losses(config, model.regression)
    batch = jax.tree.map(lambda x: x[None], TRUTH)
    assign = make_assigner(Recipe().assigner)
    targets = assign_targets(assign, grid, IMAGE_SIZE[None], batch)
    outputs = outputs_of(recipe, grid)
    return program(jax.value_and_grad(lambda out: loss(out, targets, grid).total), outputs)


def optimizer(recipe: Recipe) -> str:
    """One update, the learning rate of every step, micro-batches and the moving average."""
    return _optimizer(recipe.optim, recipe.data.global_batch)


PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
}


@functools.cache
def _optimizer(config, global_batch) -> str:
    frozen = jax.tree.map(lambda _: False, PARAMS)
    steps = optim.num_steps(config, steps_per_epoch=20.0)
    schedule = optim.make_schedule(config, global_batch, steps)
    update = optim.make_optimizer(PARAMS, frozen, config, schedule)
    text = program(update.update, PARAMS, update.init(PARAMS), PARAMS)
    rates = [float(schedule(step)) for step in range(0, steps, max(1, steps // 60))]
    return f"{text} {rates}"


def step_constants(recipe: Recipe) -> str:
    """What the training step keeps of the recipe beside its parts."""
    settings = training_setup.step_settings(recipe, CLASSES, 10)
    names = ("anchors", "accumulate", "ema_decay", "warmup_steps", "normalization")
    return str({name: getattr(settings, name) for name in names})


def post_processing(recipe: Recipe) -> str:
    """From raw predictions of one image to detections."""
    return _post_processing(recipe.eval, recipe.model, recipe.anchors)


@functools.cache
def _post_processing(config, model, anchors) -> str:
    grid = make_grid(anchors, SHAPE)
    raw = jax.tree.map(lambda x: x[0], outputs_of(Recipe(model=model, anchors=anchors), grid))
    raw = raw._replace(side_logits=None, first_boxes=None)
    settings = make_settings(config, model.regression)._asdict()
    return program(lambda out: postprocess(out, grid, IMAGE_SIZE, jnp.ones(2), **settings), raw)


def passes(recipe: Recipe) -> str:
    """The looks of test-time augmentation."""
    model = DetectorNetwork(recipe.model, CLASSES, recipe.anchors.num_per_location)
    return str([look.settings for look in make_looks(recipe, model)])


COMPONENTS = {
    "network": network,
    "anchor_grid": anchor_grid,
    "assignment": assignment,
    "losses": losses,
    "optimizer": optimizer,
    "step_constants": step_constants,
    "post_processing": post_processing,
    "passes": passes,
}
"""Name -> recipe -> fingerprint."""
