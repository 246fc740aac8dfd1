"""Everything of a training run that does not change, built once from the recipe."""

import logging
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from atss_jax.assigners.registry import make_assigner, make_warmup_assigner
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.dataset import DetectionDataset
from atss_jax.models.detector import DetectorNetwork, frozen_mask, init_variables
from atss_jax.run import build
from atss_jax.run.predict_steps import normalization
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import compiled, parallel
from atss_jax.training import optim, train_step
from atss_jax.training.losses import make_losses
from atss_jax.training.train_step import StepSettings, TrainState


class Setup(NamedTuple):
    """A run's constants."""

    mesh: Mesh
    train_set: DetectionDataset
    plan: BatchPlan
    num_steps: int
    settings: StepSettings
    shardings: TrainState
    """Placement of the state over the mesh."""
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the state."""


def set_up(config: Recipe) -> Setup:
    """Builds a run; reads annotations, touches devices, but no image and no weights."""
    mesh = build.make_mesh(config)
    train_set = build.load_dataset(config, "train")
    plan = build.make_plan(config, train_set)
    steps = optim.num_steps(config.optim, plan.steps_per_epoch)
    num_classes = len(train_set.class_names)
    model = DetectorNetwork(config.model, num_classes, config.anchors.num_per_location)
    abstract_variables = jax.eval_shape(lambda: init_variables(model, config.data.buckets[0], 0))
    params = abstract_variables["params"]
    frozen = frozen_mask(params, config.model)
    schedule = optim.make_schedule(config.optim, config.data.global_batch, steps)
    settings = StepSettings(
        model=model,
        anchors=config.anchors,
        assign=make_assigner(config.assigner),
        optimizer=optim.make_optimizer(params, frozen, config.optim, schedule),
        schedule=schedule,
        frozen=frozen,
        normalization=normalization(config),
        loss=make_losses(config.loss, config.model.regression),
        accumulate=config.optim.accumulate,
        ema_decay=config.optim.ema_decay,
        warmup_assign=make_warmup_assigner(config.assigner),
        warmup_steps=config.assigner.warmup_steps,
    )
    abstract = jax.eval_shape(lambda v: train_step.init_state(settings, v), abstract_variables)
    shardings = parallel.state_shardings(abstract, mesh, fsdp=config.run.fsdp)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    return Setup(mesh, train_set, plan, steps, settings, shardings, abstract)


def initial_state(config: Recipe, setup: Setup) -> TrainState:
    """Random or pretrained parameters with a fresh optimizer, placed on the devices."""
    model = setup.settings.model
    variables = jax.jit(lambda: init_variables(model, config.data.buckets[0], config.run.seed))()
    if config.model.init_from:
        from atss_jax.models import pretrained  # readers of weight files, only where needed

        variables = pretrained.load_into(config.model.init_from, jax.device_get(variables))
    else:
        logging.warning(
            "starting from random weights: config.model.init_from is empty. Small sets gain most "
            "from pretrained ones, see docs/recipes.md."
        )
    state = jax.jit(
        lambda v: train_step.init_state(setup.settings, v), out_shardings=setup.shardings
    )(variables)
    compiled.return_freed_memory()
    return state
