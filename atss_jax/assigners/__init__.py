"""Assigners: the definition of positives and negatives, one module for each.

Every assigner has one signature for one image,

    assign(grid, image_size, gt, *, ...) -> Assignment

is pure `jnp` with fixed shapes, and can be jitted (`grid` is static) and vmapped. That is the
paper's claim made into an interface: only the definition of positives differs.
"""

from atss_jax.assigners.atss import (
    Candidates,
    CandidateStatistics,
    assign_atss,
    iou_thresholds,
    resolve_positives,
    select_candidates,
)
from atss_jax.assigners.max_iou import assign_max_iou
from atss_jax.assigners.spatial_scale import assign_spatial_scale
from atss_jax.assigners.top_k_iou import assign_top_k_iou

ASSIGNERS = {
    "atss": assign_atss,
    "max_iou": assign_max_iou,
    "spatial_scale": assign_spatial_scale,
    "top_k_iou": assign_top_k_iou,
}
"""Name in a recipe -> assigner."""

__all__ = [
    "ASSIGNERS",
    "CandidateStatistics",
    "Candidates",
    "assign_atss",
    "assign_max_iou",
    "assign_spatial_scale",
    "assign_top_k_iou",
    "iou_thresholds",
    "resolve_positives",
    "select_candidates",
]
