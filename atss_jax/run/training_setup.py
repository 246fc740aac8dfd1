"""Everything of a training run that does not change, built once from the recipe."""

import logging
import sys
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from atss_jax.assigners.registry import make_assigner, make_warmup_assigner
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.dataset import DetectionDataset
from atss_jax.models.detector import DetectorNetwork, frozen_mask, init_variables
from atss_jax.run import build, workdir_files
from atss_jax.run.predict_steps import normalization
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import compiled, parallel, screen
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


def set_up(config: Recipe, train_set: DetectionDataset | None = None) -> Setup:
    """Builds a run; reads annotations, touches devices, but no image and no weights.

    Args:
      config: the recipe, in numbers (see `auto_fields`).
      train_set: the training set where it is read already.
    """
    mesh = build.make_mesh(config)
    parallel.check_batch(config.data.global_batch, mesh, accumulate=config.optim.accumulate)
    if train_set is None:
        train_set = build.load_dataset(config, "train")
    plan = build.make_plan(config, train_set)
    steps = optim.num_steps(config.optim, plan.steps_per_epoch)
    settings = step_settings(config, len(train_set.class_names), steps)
    abstract = abstract_state(config, settings, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return Setup(mesh, train_set, plan, steps, settings, shardings, abstract)


def step_settings(config: Recipe, num_classes: int, num_steps: int) -> StepSettings:
    """The constants of a recipe's training step; needs neither data nor devices.

    Args:
      config: the recipe.
      num_classes: of the data set.
      num_steps: length of the run.
    """
    model = DetectorNetwork(config.model, num_classes, config.anchors.num_per_location)
    params = jax.eval_shape(lambda: init_variables(model, config.data.buckets[0], 0))["params"]
    frozen = frozen_mask(params, config.model)
    schedule = optim.make_schedule(config.optim, config.data.global_batch, num_steps)
    return StepSettings(
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


def abstract_state(config: Recipe, settings: StepSettings, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the training state.

    Args:
      config: the recipe.
      settings: of its step.
      mesh: the devices, attached or those of a topology.
    """
    variables = jax.eval_shape(lambda: init_variables(settings.model, config.data.buckets[0], 0))
    abstract = jax.eval_shape(lambda v: train_step.init_state(settings, v), variables)
    shardings = parallel.state_shardings(abstract, mesh, fsdp=config.run.fsdp)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )


def initial_state(config: Recipe, setup: Setup) -> TrainState:
    """Random or pretrained parameters with a fresh optimizer, placed on the devices."""
    model = setup.settings.model
    variables = jax.jit(lambda: init_variables(model, config.data.buckets[0], config.run.seed))()
    if config.model.init_from:
        from atss_jax.run import start_weights  # readers of weight files, only where needed

        names = setup.train_set.class_names
        variables, text = start_weights.load(config, jax.device_get(variables), names)
        if jax.process_index() == 0:
            screen.show(text, sys.stderr)
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


def print_schedule_change(workdir: epath.Path, config: Recipe, setup: Setup) -> None:
    """Says what a longer run does to the learning rate of the run in a workdir.

    Args:
      workdir: folder of the run.
      config: the recipe given now.
      setup: of that recipe.
    """
    steps = workdir_files.checkpoint_steps(workdir)
    if not steps or jax.process_index() != 0:
        return
    old, done = workdir_files.read_config(workdir), steps[-1]
    before = optim.num_steps(old.optim, setup.plan.steps_per_epoch)
    if before == setup.num_steps:
        return
    schedule = optim.make_schedule(old.optim, old.data.global_batch, before)
    rates = (float(schedule(max(done - 1, 0))), float(setup.settings.schedule(done)))
    screen.show(
        f"{setup.num_steps} steps instead of {before}: the schedule is that of the longer run from "
        f"its beginning, so after step {done} the learning rate goes from {rates[0]:.3g} to "
        f"{rates[1]:.3g}",
        sys.stderr,
    )
