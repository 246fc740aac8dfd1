"""Adaptive Training Sample Selection (ATSS), the paper's assigner, in O(G L k) work and memory.

The usual form computes the distance and the IoU of every anchor with every object. Here only the
locations that can be among the k nearest are looked at (`windows`), and the result is the same.
`assign_atss` is the three public steps one after the other.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from atss_jax.assigners.conflicts import highest_iou_wins
from atss_jax.assigners.windows import (
    location_centers,
    location_index,
    location_ious,
    nearest_edge,
    nearest_locations,
)
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32
from atss_jax.structures import Assignment, GroundTruth
from atss_jax.typing import AnyArray, Array, Bool, Float, Int

BLOCK = 128
"""Objects looked at together: with more, the intermediate arrays outgrow the caches."""


class Candidates(NamedTuple):
    """Anchors that compete for each object (Algorithm 1, lines 3-6), in N = L * k * a slots.

    Level by level, nearest location first, then anchors per location. Objects are the last axis.
    """

    anchor_index: Int[Array, "N G"]
    """Into all anchors; 0 where not `is_candidate`."""
    is_candidate: Bool[Array, "N G"]
    iou: Float[Array, "N G"]
    """With the object; 0 where not `is_candidate`."""
    is_center_in_box: Bool[Array, "N G"]
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
    image_size: Int[AnyArray, "2"],
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
      in_box_margin: a centre is inside a box by more than this, px.

    Raises:
      ValueError: `candidates_per_level` below 1.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> candidates = select_candidates(AnchorGrid((96, 128)), jnp.array([96, 128]), gt)
    >>> int(candidates.is_candidate.sum())  # P6 has 2 x 2 locations, P7 has 1
    32
    """
    if candidates_per_level < 1:
        raise ValueError(f"candidates_per_level={candidates_per_level}: give at least 1.")

    def select(gt: GroundTruth) -> Candidates:
        return _select(grid, image_size, gt, candidates_per_level, in_box_margin)

    num_objects = gt.boxes.shape[0]
    if num_objects <= BLOCK:
        return select(gt)
    num_blocks = -(-num_objects // BLOCK)
    missing = num_blocks * BLOCK - num_objects
    blocks = GroundTruth(
        *(
            jnp.pad(field, [(0, missing)] + [(0, 0)] * (field.ndim - 1)).reshape(
                num_blocks, BLOCK, *field.shape[1:]
            )
            for field in gt
        )
    )
    found = lax.map(select, blocks)  # [blocks, N, BLOCK]
    return Candidates(
        *(jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :num_objects] for x in found)
    )


def _select(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    candidates_per_level: int,
    in_box_margin: float,
) -> Candidates:
    """`select_candidates` of one block of objects."""
    boxes = at_least_float32(jnp.asarray(gt.boxes))
    boxes = jnp.where(gt.is_valid[:, None], boxes, 0)  # padding may hold anything, also NaN
    locations = nearest_locations(grid, image_size, boxes, candidates_per_level)
    x, y = location_centers(grid, locations, boxes.dtype)
    index = location_index(grid, locations)[:, :, None]  # [L, k, 1, G]
    per_location = jnp.arange(grid.num_per_location, dtype=jnp.int32)[:, None]
    is_candidate = (locations.exists & gt.is_valid)[:, :, None]
    is_in_box = nearest_edge(x, y, boxes)[:, :, None] > in_box_margin
    iou = location_ious(grid, x, y, boxes)  # [L, k, a, G]

    def flat(slots: Array) -> Array:
        return jnp.broadcast_to(slots, iou.shape).reshape(-1, iou.shape[-1])

    return Candidates(
        anchor_index=flat(jnp.where(is_candidate, index + per_location, 0)),
        is_candidate=flat(is_candidate),
        iou=flat(jnp.where(is_candidate, iou, 0)),
        is_center_in_box=flat(is_candidate & is_in_box),
    )


def iou_thresholds(candidates: Candidates) -> CandidateStatistics:
    """Mean, standard deviation and their sum, the threshold (Algorithm 1, lines 7-10).

    Args:
      candidates: of one image.

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([3]), jnp.array([True]))
    >>> candidates = select_candidates(AnchorGrid((96, 128)), jnp.array([96, 128]), gt)
    >>> [round(float(value[0]), 3) for value in iou_thresholds(candidates)]
    [0.308, 0.254, 0.561]
    """
    mask, iou = candidates.is_candidate, candidates.iou
    count = jnp.sum(mask, axis=0)
    mean = jnp.sum(iou, axis=0) / jnp.maximum(count, 1)
    squares = jnp.where(mask, (iou - mean) ** 2, 0)
    std = jnp.sqrt(jnp.sum(squares, axis=0) / jnp.maximum(count - 1, 1))
    return CandidateStatistics(mean, std, mean + std)


def resolve_positives(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
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
    is_claim = candidates.is_center_in_box & (candidates.iou >= threshold)
    gt_index, is_positive = highest_iou_wins(
        candidates.anchor_index, candidates.iou, is_claim, grid.num_anchors
    )
    return Assignment(gt_index, is_positive, ~grid.own_mask(jnp.asarray(image_size)))


def assign_atss(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    *,
    candidates_per_level: int = 9,
    in_box_margin: float = 0.01,
    fallback: bool = False,
) -> Assignment:
    """Assigns anchors to objects by ATSS (Sec. 4.1, Algorithm 1); one image.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image; none valid gives all anchors negative.
      candidates_per_level: the paper's k.
      in_box_margin: a positive's centre is inside its box by more than this, px.
      fallback: gives objects that end without positives their best candidate that is still free.
        The paper has nothing like it: an object between anchor centres then has no positives.

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
    assignment = resolve_positives(grid, image_size, candidates, threshold)
    return _give_best_anchor(candidates, assignment) if fallback else assignment


def _give_best_anchor(candidates: Candidates, assignment: Assignment) -> Assignment:
    """Each object without positives claims its best free candidate: highest IoU, then nearest.

    Of two such objects that claim one anchor the lower IoU (then the higher index) gets none.
    """
    index = candidates.anchor_index
    num_slots, num_objects = index.shape
    is_taken = assignment.is_positive[index]
    is_own = is_taken & (assignment.gt_index[index] == jnp.arange(num_objects))
    has_positive = jnp.any(is_own & candidates.is_candidate, axis=0)  # [G]
    is_free = candidates.is_candidate & ~is_taken & ~has_positive
    best = jnp.argmax(jnp.where(is_free, candidates.iou, -1), axis=0)
    is_claim = is_free & (jnp.arange(num_slots)[:, None] == best)
    gt_index, is_given = highest_iou_wins(
        index, candidates.iou, is_claim, assignment.is_positive.shape[0]
    )
    return Assignment(
        jnp.where(is_given, gt_index, assignment.gt_index),
        assignment.is_positive | is_given,
        assignment.is_ignored,
    )
