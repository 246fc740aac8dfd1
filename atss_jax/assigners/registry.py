"""Names of assigners in a recipe."""

import functools
import inspect
from collections.abc import Callable

from atss_jax.assigners.atss import assign_atss
from atss_jax.assigners.config import AssignerConfig
from atss_jax.assigners.max_iou import assign_max_iou
from atss_jax.assigners.spatial_scale import assign_spatial_scale
from atss_jax.assigners.task_aligned import assign_task_aligned
from atss_jax.assigners.top_k_iou import assign_top_k_iou
from atss_jax.config import choices
from atss_jax.structures import Assignment

Assigner = Callable[..., Assignment]
"""An assigner with its hyper-parameters bound: (grid, image_size, gt) -> Assignment of one image,
or (grid, image_size, gt, predictions) where `needs_predictions`."""


def needs_predictions(assign: Assigner) -> bool:
    """Whether an assigner looks at predictions: it then has a parameter `predictions`."""
    return "predictions" in inspect.signature(assign).parameters


def make_assigner(config: AssignerConfig) -> functools.partial[Assignment]:
    """The assigner of a recipe with its hyper-parameters: (grid, image_size, gt) -> Assignment.

    Where `needs_predictions`: (grid, image_size, gt, predictions) -> Assignment.
    """
    match config.name:
        case "atss":
            return functools.partial(assign_atss, candidates_per_level=config.candidates_per_level)
        case "top_k_iou":
            return functools.partial(assign_top_k_iou, candidates=config.num_candidates)
        case "max_iou":
            return functools.partial(
                assign_max_iou,
                foreground_iou=config.foreground_iou,
                background_iou=config.background_iou,
                positives_in_box=config.positives_in_box,
            )
        case "spatial_scale":
            return functools.partial(assign_spatial_scale, center_radius=config.center_radius)
        case "task_aligned":
            return functools.partial(
                assign_task_aligned,
                top_k=config.alignment_top_k,
                alpha=config.alignment_alpha,
                beta=config.alignment_beta,
            )


def make_warmup_assigner(config: AssignerConfig) -> Assigner | None:
    """What assigns in the first `config.warmup_steps` steps: ATSS; None without warm-up."""
    if not config.warmup_steps:
        return None
    return functools.partial(assign_atss, candidates_per_level=config.candidates_per_level)


_MADE = {
    name: make_assigner(AssignerConfig.from_mapping({"name": name}))
    for name in choices(AssignerConfig, "name")
}
ASSIGNERS: dict[str, Assigner] = {
    name: made.func for name, made in _MADE.items() if not needs_predictions(made)
}
"""Name in a recipe -> assigner, of those that look at anchors and ground truth alone.

"task_aligned" also needs predictions, so it does not answer the same call.
"""
