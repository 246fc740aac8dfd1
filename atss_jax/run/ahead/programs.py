"""Programs of a recipe that are compiled for devices that are not here.

Whole programs are "train" and "predict"; parts are small, so that they compile in seconds.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from atss_jax.assigners.registry import make_assigner, needs_predictions
from atss_jax.data.loader import batch_shapes
from atss_jax.errors import UserError
from atss_jax.evaluation.postprocess import make_settings, postprocess_batch
from atss_jax.geometry import pyramid
from atss_jax.geometry.anchors import make_grid
from atss_jax.models.backbones import make_backbone
from atss_jax.models.detector import (
    DTYPES,
    DetectorNetwork,
    init_variables,
    normalize_images,
    own_masks,
)
from atss_jax.models.fpn import FeaturePyramid
from atss_jax.models.head import Head, Tower
from atss_jax.models.resnet import Architecture, ResNet
from atss_jax.run.predict_steps import normalization, predict_step
from atss_jax.run.recipe import Recipe
from atss_jax.run.training_setup import abstract_state, step_settings
from atss_jax.runtime import parallel
from atss_jax.structures import Assignment, Losses
from atss_jax.training.losses import make_losses
from atss_jax.training.targets import assign_targets, make_targets
from atss_jax.training.train_step import make_train_step, update_state


class Program(NamedTuple):
    """A jitted function with the shapes that it is compiled for."""

    function: Any
    arguments: tuple[Any, ...]


class Case(NamedTuple):
    """What is compiled: a recipe over a mesh, one bucket, so many images per device."""

    config: Recipe
    """Its global batch is `per_device` times the devices."""
    mesh: Mesh
    bucket: tuple[int, int]
    per_device: int
    num_classes: int


def train(case: Case) -> Program:
    """The whole training step."""
    config, mesh = case.config, case.mesh
    settings = step_settings(config, case.num_classes, 90_000)
    state = abstract_state(config, settings, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = batch_shapes(case.bucket, config.data.global_batch, config.data.max_boxes)
    return Program(
        make_train_step(settings, mesh, shardings), (state, _placed(batch, mesh, rows=True))
    )


def predict(case: Case) -> Program:
    """The whole predict step, uint8 images to detections."""
    network = _network(case)
    variables = jax.eval_shape(lambda: init_variables(network, case.bucket, 0))
    batch = case.per_device * case.mesh.size
    rows = (
        jax.ShapeDtypeStruct((batch, *case.bucket, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        jax.ShapeDtypeStruct((batch, 2), jnp.float32),
    )
    step = predict_step(case.config, network, mesh=case.mesh)
    arguments = (_placed(variables, case.mesh), *_placed(rows, case.mesh, rows=True))
    return Program(step, arguments)


def stem(case: Case) -> Program:
    """uint8 images to the input of C2: normalisation, 7x7 convolution, norm, ReLU, pooling.

    Raises:
      UserError: the recipe's backbone is no ResNet.
    """
    if not isinstance(make_backbone(case.config.model), ResNet):
        raise UserError(
            f"--part=stem with config.model.backbone={case.config.model.backbone!r}: only ResNets "
            "and ResNeXts have a part stem. Use --part=backbone."
        )
    model = dataclasses.replace(case.config.model, frozen_stages=1)
    return _backbone(case, ResNet(model, Architecture((0, 0, 0, 0), True, 1, 64), _dtype(case)))


def backbone(case: Case) -> Program:
    """uint8 images to C2..C5, forward and backward."""
    return _backbone(case, make_backbone(case.config.model, _dtype(case)))


def fpn(case: Case) -> Program:
    """C3..C5 to P3..P7, forward and backward."""
    config, body = case.config.model, make_backbone(case.config.model, _dtype(case))
    image = jax.ShapeDtypeStruct((1, *case.bucket, 3), jnp.float32)
    stages, _ = jax.eval_shape(lambda x: body.init_with_output(jax.random.key(0), x), image)
    by_stride = dict(zip(body.strides, stages, strict=True))
    maps = [by_stride[stride].shape[1:] for stride in (8, 16, 32)]
    module = FeaturePyramid(
        channels=config.fpn_channels,
        p6_from=config.p6_from,
        relu_before_p7=config.relu_before_p7,
        dtype=_dtype(case),
    )
    return _gradients(case, lambda v, m, masks: module.apply(v, tuple(m), masks), module, maps)


def head(case: Case) -> Program:
    """P3..P7 to the outputs of all levels, forward and backward."""
    config = case.config
    maps = [(*s, config.model.fpn_channels) for s in pyramid.level_shapes(case.bucket)]
    module = Head(config.model, case.num_classes, config.anchors.num_per_location, _dtype(case))
    return _gradients(case, lambda v, m, masks: module.apply(v, tuple(m), masks), module, maps)


def head_layer(case: Case) -> Program:
    """One convolution of a tower with norm, ReLU and mask on P3, forward and backward."""
    config = dataclasses.replace(case.config.model, head_convs=1)
    maps = [(*pyramid.level_shapes(case.bucket)[0], config.fpn_channels)]
    module = Tower(config, _dtype(case))
    return _gradients(case, lambda v, m, masks: module.apply(v, tuple(m), masks[:1]), module, maps)


def losses(case: Case) -> Program:
    """All losses and their gradients by the outputs of the head."""
    outputs, _ = _outputs(case)
    grid = make_grid(case.config.anchors, case.bucket)
    settings = make_losses(case.config.loss, case.config.model.regression)
    targets = _targets(case, grid)

    def gradients(outputs, targets):
        return jax.value_and_grad(lambda o: settings(o, targets, grid).total)(outputs)

    return Program(jax.jit(gradients), _placed((outputs, targets), case.mesh, rows=True))


def assigner(case: Case) -> Program:
    """Targets of a batch, for assigners that do not look at predictions."""
    assign = make_assigner(case.config.assigner)
    if needs_predictions(assign):
        raise UserError("part assigner: this recipe's assigner needs predictions. Use train.")
    grid = make_grid(case.config.anchors, case.bucket)
    data = case.config.data
    batch = batch_shapes(case.bucket, data.global_batch, data.max_boxes)
    function = functools.partial(assign_targets, assign, grid, mesh=case.mesh)
    inputs = (batch.image_size, batch.ground_truth)
    return Program(jax.jit(function), _placed(inputs, case.mesh, rows=True))


def postprocess(case: Case) -> Program:
    """Outputs of the head to detections."""
    outputs, image_size = _outputs(case)
    settings = make_settings(case.config.eval, case.config.model.regression)
    grid = make_grid(case.config.anchors, case.bucket)
    scale = jax.ShapeDtypeStruct(image_size.shape, "float32")

    def local(outputs, image_size, scale):
        return postprocess_batch(outputs, grid, image_size, scale, **settings._asdict())

    rows = PartitionSpec(parallel.AXIS)
    function = jax.shard_map(local, mesh=case.mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return Program(jax.jit(function), _placed((outputs, image_size, scale), case.mesh, rows=True))


def optimizer(case: Case) -> Program:
    """Gradients to the next state, with the check for finite values."""
    settings = step_settings(case.config, case.num_classes, 90_000)
    state = abstract_state(case.config, settings, case.mesh)
    scalar: Any = jax.ShapeDtypeStruct((), jnp.float32)
    losses = Losses(*(scalar for _ in Losses._fields))

    def update(state, gradients, losses):
        return update_state(settings, state, gradients, losses, state.batch_stats)

    return Program(
        jax.jit(update, donate_argnums=0), (state, state.params, _placed(losses, case.mesh))
    )


PROGRAMS: dict[str, Callable[[Case], Program]] = {
    "train": train,
    "predict": predict,
    "stem": stem,
    "backbone": backbone,
    "fpn": fpn,
    "head": head,
    "head_layer": head_layer,
    "losses": losses,
    "assigner": assigner,
    "postprocess": postprocess,
    "optimizer": optimizer,
}
"""What can be compiled: the two whole steps, and parts of them."""


def find(part: str) -> Callable[[Case], Program]:
    """What makes the program of a part.

    Raises:
      UserError: no such part.
    """
    if part not in PROGRAMS:
        near = difflib.get_close_matches(part, PROGRAMS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--part={part}: no such part. Did you mean {near}? There are {', '.join(PROGRAMS)}."
        )
    return PROGRAMS[part]


def _dtype(case: Case) -> Any:

    return DTYPES[case.config.model.dtype]


def _network(case: Case) -> Any:

    config = case.config
    return DetectorNetwork(config.model, case.num_classes, config.anchors.num_per_location)


def _placed(tree: Any, mesh: Any, *, rows: bool = False) -> Any:
    """Shapes with a sharding: split by rows, or whole on every device."""
    sharding = parallel.batch_sharding(mesh) if rows else parallel.replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def _outputs(case: Case) -> tuple[Any, Any]:
    """Shapes of the network's outputs and image sizes of the global batch."""
    network = _network(case)
    batch = case.per_device * case.mesh.size
    images = jax.ShapeDtypeStruct((batch, *case.bucket, 3), network.compute_dtype)
    sizes = jax.ShapeDtypeStruct((batch, 2), "int32")
    variables = jax.eval_shape(lambda: init_variables(network, case.bucket, 0))
    return jax.eval_shape(network.apply, variables, images, sizes), sizes


def _targets(case: Case, grid: Any) -> Any:

    data = case.config.data
    truth = batch_shapes(case.bucket, data.global_batch, data.max_boxes).ground_truth
    shape = (data.global_batch, grid.num_anchors)
    flags: Any = jax.ShapeDtypeStruct(shape, "bool")
    indices: Any = jax.ShapeDtypeStruct(shape, "int32")
    assignment = Assignment(indices, flags, flags)
    return jax.eval_shape(jax.vmap(lambda a, t: make_targets(a, t, grid)), assignment, truth)


def _backbone(case: Case, module: Any) -> Program:
    """A backbone from uint8 images on, with the gradients of its parameters."""
    settings = normalization(case.config)._asdict()
    batch = case.per_device * case.mesh.size
    images = jax.ShapeDtypeStruct((batch, *case.bucket, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)

    def forward(variables, images, sizes):
        masks, _ = own_masks(case.bucket, sizes)
        pixels = normalize_images(images, sizes, **settings).astype(module.dtype)
        return module.apply(variables, pixels, masks, train=False)

    floats = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), floats)
    if not hasattr(module, "architecture") or any(module.architecture.depths):
        function = _vjp(forward)
        cotangents = jax.eval_shape(forward, variables, images, sizes)
    else:  # a frozen stem has no gradient
        function = lambda v, i, s, _: forward(v, i, s)  # noqa: E731
        cotangents = ()
    return Program(
        jax.jit(function),
        (
            _placed(variables, case.mesh),
            *_placed((images, sizes, cotangents), case.mesh, rows=True),
        ),
    )


def _gradients(case: Case, forward: Any, module: Any, maps: list[tuple[int, int, int]]) -> Program:
    """A part between maps, with the gradients of its parameters and inputs."""
    batch = case.per_device * case.mesh.size
    inputs = [jax.ShapeDtypeStruct((batch, *shape), module.dtype) for shape in maps]
    sizes = jax.ShapeDtypeStruct((batch, 2), "int32")

    def masked(variables, inputs, sizes):
        return forward(variables, inputs, own_masks(case.bucket, sizes)[1])

    def init(inputs, sizes):
        masks = own_masks(case.bucket, sizes)[1]
        masks = masks[:1] if len(inputs) == 1 else masks  # one level alone has one mask
        return module.init(jax.random.key(0), tuple(inputs), masks)

    variables = jax.eval_shape(init, inputs, sizes)
    cotangents = jax.eval_shape(masked, variables, inputs, sizes)
    rows = _placed((inputs, sizes, cotangents), case.mesh, rows=True)
    return Program(jax.jit(_vjp(masked)), (_placed(variables, case.mesh), *rows))


def _vjp(forward: Any) -> Any:

    def function(variables, inputs, sizes, cotangents):
        outputs, pull = jax.vjp(lambda v, x: forward(v, x, sizes), variables, inputs)
        return outputs, pull(cotangents)

    return function
