"""Adaptive Training Sample Selection (ATSS), the paper's assigner, in O(G L k) work and memory.

The usual form computes the distance and the IoU of every anchor with every object. Here only the
locations that can be among the k nearest are looked at (`windows`), and the result is the same.
`assign_atss` is the three public steps one after the other.
"""

from typing import NamedTuple

import jax.numpy as jnp

from atss_jax.anchors import AnchorGrid
from atss_jax.assigners.conflicts import highest_iou_wins
from atss_jax.assigners.windows import (
    location_index,
    slot_centers,
    slot_ious,
    slots_in_box,
    window_around,
)
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import Array, Bool, Float, Int


class Candidates(NamedTuple):
    """Anchors that compete for each object (Algorithm 1, lines 3-6), in N slots."""

    anchor_index: Int[Array, "G N"]
    """Into all anchors; meaningful where `is_candidate`."""
    is_candidate: Bool[Array, "G N"]
    iou: Float[Array, "G N"]
    """With the object; meaningful where `is_candidate`."""
    is_center_in_box: Bool[Array, "G N"]
    """The anchor's centre lies inside the object."""


class CandidateStatistics(NamedTuple):
    """IoU of each object with its candidates (Algorithm 1, lines 7-10); 0 without candidates."""

    mean: Float[Array, " G"]
    """m_g."""
    std: Float[Array, " G"]
    """v_g, unbiased."""
    threshold: Float[Array, " G"]
    """t_g = m_g + v_g."""


def select_candidates(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    gt: GroundTruth,
    *,
    candidates_per_level: int = 9,
    in_box_margin: float = 0.01,
) -> Candidates:
    """The anchors nearest to each object on every level (ATSS Sec. 4.1, Algorithm 1 lines 3-6).

    On each level these are all anchors of the `candidates_per_level` locations whose centres are
    nearest to the object's centre; all locations of a level that has fewer. At equal distance the
    lower index comes first.

    Args:
      grid: the anchors.
      image_size: (h, w) of the content, px. Anchors outside the image's own grid are no candidates.
      gt: objects of the image.
      candidates_per_level: the paper's k, at least 1.
      in_box_margin: a centre must be inside a box by more than this, px.

    Returns:
      L * S * a slots for each object, of which at most L * k * a are filled (S: `windows`).

    Raises:
      ValueError: `candidates_per_level` below 1.
    """
    if candidates_per_level < 1:
        raise ValueError(f"candidates_per_level={candidates_per_level}: at least 1.")
    boxes = jnp.where(gt.is_valid[:, None], gt.boxes, 0)  # padding may hold anything, also NaN
    window = window_around(grid, image_size, boxes, candidates_per_level)
    index = location_index(grid, window)
    distance2 = jnp.where(window.exists, window.distance2, jnp.inf)
    num_before = jnp.zeros(index.shape, jnp.int32)
    for slot in range(index.shape[-1]):
        other, other_index = distance2[..., slot, None], index[..., slot, None]
        is_before = (other < distance2) | ((other == distance2) & (other_index < index))
        num_before = num_before + is_before
    is_candidate = (num_before < candidates_per_level) & window.exists
    is_candidate = is_candidate & gt.is_valid[:, None, None]

    centers = slot_centers(grid, window)
    shape = (*index.shape, grid.num_per_location)
    index = index[..., None] + jnp.arange(grid.num_per_location, dtype=jnp.int32)
    flat = lambda x: jnp.broadcast_to(x, shape).reshape(shape[0], -1)  # noqa: E731
    return Candidates(
        anchor_index=flat(index),
        is_candidate=flat(is_candidate[..., None]),
        iou=flat(slot_ious(grid, centers, boxes)),
        is_center_in_box=flat(slots_in_box(centers, boxes, in_box_margin)[..., None]),
    )


def iou_thresholds(candidates: Candidates) -> CandidateStatistics:
    """Mean, standard deviation and their sum, the threshold (Algorithm 1, lines 7-10).

    Args:
      candidates: of one image.
    """
    mask = candidates.is_candidate
    count = jnp.sum(mask, axis=1)
    iou = jnp.where(mask, candidates.iou, 0)
    mean = jnp.sum(iou, axis=1) / jnp.maximum(count, 1)
    squares = jnp.where(mask, (iou - mean[:, None]) ** 2, 0)
    std = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.maximum(count - 1, 1))
    return CandidateStatistics(mean, std, mean + std)


def resolve_positives(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    candidates: Candidates,
    threshold: Float[Array, " G"],
) -> Assignment:
    """Candidates above the threshold inside their object are positive (Algorithm 1, lines 11-15).

    An anchor that is positive for several objects goes to the one with the highest IoU, to the
    lowest index among equals. All other anchors of the image's own grid are negative.

    Args:
      grid: the anchors.
      image_size: (h, w) of the content, px.
      candidates: of the image.
      threshold: t_g, the lowest IoU of a positive of each object.
    """
    is_positive = (
        candidates.is_candidate
        & (candidates.iou >= threshold[:, None])
        & candidates.is_center_in_box
    )
    gt_index, is_taken = highest_iou_wins(
        candidates.anchor_index, candidates.iou, is_positive, grid.num_anchors
    )
    return Assignment(gt_index, is_taken, ~grid.own_mask(image_size))


def assign_atss(
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    gt: GroundTruth,
    *,
    candidates_per_level: int = 9,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns anchors to objects by ATSS (Sec. 4.1, Algorithm 1); one image.

    An object may end without positives, as in the paper: when no anchor centre lies in it.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image; none valid gives all anchors negative.
      candidates_per_level: the paper's k.
      in_box_margin: a positive's centre is inside its box by more than this, px.

    Raises:
      ValueError: `candidates_per_level` below 1.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> assignment = assign_atss(AnchorGrid((96, 128)), jnp.array([96, 128]), gt)
    >>> int(assignment.is_positive.sum())
    9
    """
    candidates = select_candidates(
        grid,
        image_size,
        gt,
        candidates_per_level=candidates_per_level,
        in_box_margin=in_box_margin,
    )
    threshold = iou_thresholds(candidates).threshold
    return resolve_positives(grid, image_size, candidates, threshold)
