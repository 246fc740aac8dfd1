"""Assigners: the definition of positives and negatives, one module for each.

Every assigner has one signature for one image,

    assign(grid, image_size, gt, *, ...) -> Assignment

is pure `jnp` with fixed shapes, and can be jitted (`grid` is static) and vmapped. That is the
paper's claim made into an interface: only the definition of positives differs.

Names are imported when they are first used: `assigners.config` must not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atss_jax.assigners.atss import (
        Candidates,
        CandidateStatistics,
        assign_atss,
        iou_thresholds,
        resolve_positives,
        select_candidates,
    )
    from atss_jax.assigners.max_iou import assign_max_iou
    from atss_jax.assigners.registry import ASSIGNERS
    from atss_jax.assigners.spatial_scale import assign_spatial_scale
    from atss_jax.assigners.task_aligned import align_tasks, assign_task_aligned
    from atss_jax.assigners.top_k_iou import assign_top_k_iou

_MODULES = {
    "ASSIGNERS": "registry",
    "CandidateStatistics": "atss",
    "Candidates": "atss",
    "align_tasks": "task_aligned",
    "assign_atss": "atss",
    "assign_max_iou": "max_iou",
    "assign_spatial_scale": "spatial_scale",
    "assign_task_aligned": "task_aligned",
    "assign_top_k_iou": "top_k_iou",
    "iou_thresholds": "atss",
    "resolve_positives": "atss",
    "select_candidates": "atss",
}
"""Public name -> module of this folder."""

__all__ = [
    "ASSIGNERS",
    "CandidateStatistics",
    "Candidates",
    "align_tasks",
    "assign_atss",
    "assign_max_iou",
    "assign_spatial_scale",
    "assign_task_aligned",
    "assign_top_k_iou",
    "iou_thresholds",
    "resolve_positives",
    "select_candidates",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
