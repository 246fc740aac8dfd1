"""Task-aligned assignment (TAL): the anchors whose predictions fit an object best are positives.

Unlike the other assigners it looks at predictions, so it takes one more argument,

    assign(grid, image_size, gt, predictions, *, ...) -> Assignment

and the training step calls it after the network.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from atss_jax.assigners.conflicts import highest_iou_wins
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, pairwise_iou, points_to_ltrb
from atss_jax.structures import Assignment, GroundTruth, Predictions
from atss_jax.typing import AnyArray, Array, Float, Int


class TaskAlignment(NamedTuple):
    """An assignment with the numbers behind it; one image."""

    assignment: Assignment
    metric: Float[Array, " A"]
    """score^alpha IoU^beta of anchor and object where positive, 0 elsewhere."""
    iou: Float[Array, " A"]
    """Of the predicted box and the object where positive, 0 elsewhere."""


def align_tasks(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    predictions: Predictions,
    *,
    top_k: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    in_box_margin: float = 0.01,
) -> TaskAlignment:
    """`assign_task_aligned` with the alignment metric, which soft labels are made of.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px.
      gt: objects of the image.
      predictions: of the image's anchors.
      top_k: see `assign_task_aligned`.
      alpha: see `assign_task_aligned`.
      beta: see `assign_task_aligned`.
      in_box_margin: see `assign_task_aligned`.

    Raises:
      ValueError: `top_k` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: give at least 1.")
    boxes = at_least_float32(jnp.asarray(gt.boxes))
    boxes = jnp.where(gt.is_valid[:, None], boxes, 0)  # padding may hold anything, also NaN
    labels = jnp.where(gt.is_valid, gt.labels, 0)
    own = grid.own_mask(jnp.asarray(image_size))
    iou = pairwise_iou(boxes, predictions.boxes)  # [G, A]
    score = at_least_float32(predictions.scores)[:, labels].T
    # Logarithms: IoU^6 of a box that is hardly touched is 0 in float32.
    rank = jnp.log(score) * alpha + jnp.log(iou) * beta
    exists = gt.is_valid[:, None] & own & (score > 0) & (iou > 0)
    rank = jnp.where(exists, rank, -jnp.inf)
    best, index = lax.top_k(rank, min(top_k, grid.num_anchors))  # [G, k]
    centers = jnp.asarray(grid.centers(), boxes.dtype)[index]
    edge = jnp.min(points_to_ltrb(centers, boxes[:, None]), axis=-1)
    is_claim = (best > -jnp.inf) & (edge > in_box_margin)
    claimed_iou = jnp.take_along_axis(iou, index, axis=1)
    gt_index, is_positive = highest_iou_wins(index.T, claimed_iou.T, is_claim.T, grid.num_anchors)
    anchors = jnp.arange(grid.num_anchors)
    own_iou, own_score = iou[gt_index, anchors], score[gt_index, anchors]
    return TaskAlignment(
        Assignment(gt_index, is_positive, ~own),
        jnp.where(is_positive, own_score**alpha * own_iou**beta, 0),
        jnp.where(is_positive, own_iou, 0),
    )


def assign_task_aligned(
    grid: AnchorGrid,
    image_size: Int[AnyArray, "2"],
    gt: GroundTruth,
    predictions: Predictions,
    *,
    top_k: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    in_box_margin: float = 0.01,
) -> Assignment:
    """Assigns anchors to objects by how well both tasks fit (TOOD Sec. 3.2); one image.

    The alignment of an anchor with an object is t = s^alpha u^beta, where s is the predicted
    probability of the object's class and u the IoU of the predicted box with the object. Of the
    `top_k` anchors of highest t over all levels, those with t > 0 whose centre lies inside the
    object are positive. An anchor claimed by several objects goes to the one with the highest IoU,
    to the lowest index among equals. All other anchors of the image's own grid are negative.

    Needs memory for all anchors times all objects. No gradient should flow through it.

    Args:
      grid: the anchors (static).
      image_size: (h, w) of the content, px. Anchors outside the image's own grid are ignored.
      gt: objects of the image; none valid gives all anchors negative.
      predictions: class probabilities and decoded boxes of the image's anchors.
      top_k: candidates per object, at least 1.
      alpha: exponent of the class probability.
      beta: exponent of the IoU.
      in_box_margin: a positive's centre is inside its box by more than this, px.

    Raises:
      ValueError: `top_k` below 1.

    References:
      Feng et al., TOOD: Task-aligned One-stage Object Detection, ICCV 2021 (arXiv 2108.07755).

    >>> gt = GroundTruth(jnp.array([[10.0, 10.0, 80.0, 90.0]]), jnp.array([1]), jnp.array([True]))
    >>> grid = AnchorGrid((96, 128))
    >>> scores = jnp.full((grid.num_anchors, 2), 0.5)
    >>> predictions = Predictions(scores, jnp.asarray(grid.boxes(), jnp.float32))
    >>> int(assign_task_aligned(grid, jnp.array([96, 128]), gt, predictions).is_positive.sum())
    13
    """
    return align_tasks(
        grid,
        image_size,
        gt,
        predictions,
        top_k=top_k,
        alpha=alpha,
        beta=beta,
        in_box_margin=in_box_margin,
    ).assignment
