"""`--mode=describe`: what a recipe's network is and costs, without data and without training."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from atss_jax.geometry.anchors import AnchorGrid, make_grid
from atss_jax.models.backbone import STEM
from atss_jax.models.backbones import make_backbone
from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork, frozen_mask, init_variables
from atss_jax.run import auto_fields, build, classes
from atss_jax.run.recipe import Recipe
from atss_jax.structures import Targets
from atss_jax.training.losses import LossSettings, make_losses

COCO_CLASSES = 80


class ProgramCost(NamedTuple):
    """Cost of a compiled program over one image, as the compiler counts it."""

    macs: float
    """Multiply-adds of convolutions and matrix products, zero padding included, as in papers."""
    flops: float
    """Floating point operations by XLA (a multiply-add is two; taps in the padding are not)."""
    bytes_accessed: float
    argument_bytes: int
    temporary_bytes: int


def count_parameters(params: Any, frozen: Any, config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(all, frozen) numbers of each part: "backbone/stem", "backbone/C2", ..., "head/...".

    Args:
      params: nested dict of arrays or shapes.
      frozen: tree of bool like `params`.
      config: of the network.
    """
    stage_of = make_backbone(config).stage_of
    counts: dict[str, tuple[int, int]] = {}
    flags = jax.tree.leaves(frozen)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), flag in zip(leaves, flags, strict=True):
        names = [str(k.key) for k in path]
        part = names[0]
        if part == "backbone":
            stage = stage_of(tuple(names[1:]))
            part = "backbone/stem" if stage == STEM else f"backbone/C{stage}"
        elif part == "head":
            part = f"head/{names[1]}"
        total, fixed = counts.get(part, (0, 0))
        size = math.prod(leaf.shape)
        counts[part] = (total + size, fixed + size * flag)
    return counts


def forward_cost(
    model: DetectorNetwork, variables: Any, image_shape: tuple[int, int]
) -> ProgramCost:
    """Cost of the forward pass of one image."""
    images, sizes = _inputs(image_shape, model.compute_dtype)
    return _cost(jax.jit(model.apply), variables, images, sizes)


def training_cost(
    model: DetectorNetwork, variables: Any, grid: AnchorGrid, loss: LossSettings, frozen: Any
) -> ProgramCost:
    """Cost of losses and gradients of one image, targets given.

    Args:
      model: the network.
      variables: its variables, or their shapes.
      grid: the anchors of a bucket.
      loss: the losses.
      frozen: tree of bool like the parameters.
    """
    images, sizes = _inputs(grid.image_shape, model.compute_dtype)

    def gradients(variables, images, sizes, targets):
        def loss_fn(params):
            outputs, updates = model.apply(
                {**variables, "params": params}, images, sizes, train=True, mutable=["batch_stats"]
            )
            return loss(outputs, targets, grid).total, updates

        found, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
        # Gradients of frozen parameters are not asked for, so the compiler drops them.
        return jax.tree.map(lambda g, f: None if f else g, found, frozen), updates

    return _cost(jax.jit(gradients), variables, images, sizes, _targets(grid))


def _inputs(image_shape: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
    images = jax.ShapeDtypeStruct((1, *image_shape, 3), dtype)
    return images, jax.ShapeDtypeStruct((1, 2), jnp.int32)


def _targets(grid: AnchorGrid) -> Targets:
    def shape(*extra: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((1, grid.num_anchors, *extra), dtype)

    return Targets(
        labels=shape(dtype=jnp.int32),
        boxes=shape(4, dtype=jnp.float32),
        centerness=shape(dtype=jnp.float32),
        is_positive=shape(dtype=jnp.bool_),
        is_ignored=shape(dtype=jnp.bool_),
    )


def count_macs(jaxpr: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of a jaxpr, loops unrolled.

    Of branches (`lax.cond`, choices by platform) the one with most counts.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[i] for i in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        repeats = parameters.get("length", 1) if name == "scan" else 1
        for value in parameters.values():
            branches = value if isinstance(value, (tuple, list)) else (value,)
            inner = [getattr(branch, "jaxpr", branch) for branch in branches]
            counts = [count_macs(each) for each in inner if hasattr(each, "eqns")]
            total += repeats * max(counts, default=0)
    return total


def _cost(function: Any, *arguments: Any) -> ProgramCost:
    macs = count_macs(jax.make_jaxpr(function)(*arguments).jaxpr)
    program = function.lower(*arguments).compile()
    analysis, memory = program.cost_analysis() or {}, program.memory_analysis()
    return ProgramCost(
        macs,
        float(analysis.get("flops", 0.0)),
        float(analysis.get("bytes accessed", 0.0)),
        int(getattr(memory, "argument_size_in_bytes", 0)),
        int(getattr(memory, "temp_size_in_bytes", 0)),
    )


def in_numbers(config: Recipe, workdir: epath.Path | None) -> tuple[Recipe, list[str]]:
    """The recipe with every automatic field chosen, and lines that say what was chosen.

    Args:
      config: the recipe.
      workdir: of a run, which has chosen already, or None.
    """
    if workdir is None and auto_fields.is_automatic(config):
        return auto_fields.resolve(config, *build.load_sets(config))
    return config, []


def count_classes(config: Recipe, workdir: epath.Path | None) -> tuple[int, str]:
    """Number of classes, and who says so.

    Args:
      config: the recipe.
      workdir: of a run, or None.
    """
    trained = None if workdir is None else classes.read_classes(workdir)
    if trained is not None:
        return len(trained[0]), f"of {workdir}"
    try:
        return len(build.load_sets(config)[0].class_names), "data set"
    except (FileNotFoundError, ValueError):
        return COCO_CLASSES, "assumed: the data set is not here"


def describe(config: Recipe, workdir: epath.Path | None = None) -> str:
    """Parameters by part, anchors by level, cost of an image: a text for people.

    The number of classes is that of the workdir, or of the data set; where neither is there, COCO's
    80 are assumed, and the text says so.

    Args:
      config: the recipe.
      workdir: of a run, if there is one.
    """
    config, chosen = in_numbers(config, workdir)
    num_classes, source = count_classes(config, workdir)
    model = DetectorNetwork(config.model, num_classes, config.anchors.num_per_location)
    largest = max(config.data.buckets, key=math.prod)
    variables = jax.eval_shape(lambda: init_variables(model, largest, 0))
    frozen = frozen_mask(variables["params"], config.model)
    grid = make_grid(config.anchors, largest)
    lines = [f"{config.model.backbone}, {num_classes} classes ({source})", *chosen, ""]
    lines += _parameter_lines(count_parameters(variables["params"], frozen, config.model))
    constants = sum(math.prod(a.shape) for a in jax.tree.leaves(variables.get("batch_stats", {})))
    lines += [f"{'constants and statistics of norms':34}{constants:>14,}", ""]
    lines += _anchor_lines(grid)
    height, width = largest
    costs = {
        "forward": forward_cost(model, variables, largest),
        "loss and gradients": training_cost(
            model, variables, grid, make_losses(config.loss, config.model.regression), frozen
        ),
    }
    lines += [
        f"one image of {height}x{width}, {config.model.dtype}, {jax.default_backend()}",
        f"{'':20}{'GMAC':>9}{'GFLOP':>9}{'GB moved':>10}{'input MiB':>11}{'temporary MiB':>15}",
    ]
    for name, cost in costs.items():
        lines.append(
            f"{name:20}{cost.macs / 1e9:>9.1f}{cost.flops / 1e9:>9.1f}"
            f"{cost.bytes_accessed / 1e9:>10.2f}{cost.argument_bytes / 2**20:>11.0f}"
            f"{cost.temporary_bytes / 2**20:>15.0f}"
        )
    return "\n".join(lines)


def _parameter_lines(counts: dict[str, tuple[int, int]]) -> list[str]:
    lines = [f"{'parameters':24}{'trained':>12}{'frozen':>12}"]
    for part, (total, fixed) in sorted(counts.items()):
        lines.append(f"{part:24}{total - fixed:>12,}{fixed:>12,}")
    total = sum(t for t, _ in counts.values())
    fixed = sum(f for _, f in counts.values())
    lines.append(f"{'all':24}{total - fixed:>12,}{fixed:>12,}{total:>14,}")
    return lines


def _anchor_lines(grid: AnchorGrid) -> list[str]:
    lines = [f"anchors of {grid.image_shape[0]}x{grid.image_shape[1]}"]
    for i, ((h, w), count) in enumerate(zip(grid.level_shapes, grid.num_per_level, strict=True)):
        sides = ", ".join(f"{a:g}x{b:g}" for a, b in grid.cell_sizes(i))
        lines.append(f"P{i + 3}  stride {grid.strides[i]:>3}  {h}x{w}  {count:>8,}  of {sides} px")
    return [*lines, f"all {grid.num_anchors:,}", ""]
