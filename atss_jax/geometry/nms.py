"""Class-wise non-maximum suppression, hard and soft, with fixed shapes and no N x N matrix.

`postprocess` calls it on the candidates of all levels together. It sees boxes, scores and
classes only; nothing here knows anchors or levels.
"""

import jax.numpy as jnp
from jax import lax

from atss_jax.geometry.boxes import at_least_float32, box_area, paired_intersection
from atss_jax.typing import Array, Bool, Float, Int


def class_wise_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    is_valid: Bool[Array, " N"],
    *,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Int[Array, " D"], Bool[Array, " D"]]:
    """The first `max_detections` survivors of greedy NMS within each class.

    Greedy NMS takes boxes by descending score and drops every box that overlaps a taken one of its
    class. Its first D survivors are found by D rounds of "take the best box left, drop what it
    suppresses": O(D * N) work, O(N) memory, no sort. The rounds end early when nothing is left.

    Args:
      boxes: xyxy px.
      scores: higher is better; finite where `is_valid`. Equal scores go by the lower index.
      labels: class of each box; boxes of different classes never suppress each other.
      is_valid: False for slots that hold no box.
      iou_threshold: a box is dropped when its IoU with a taken one is *greater* than this; boxes
        without area suppress nothing.
      max_detections: D.

    Returns:
      Index [D] of the survivors by descending score, and a mask [D] of the slots that are filled
      (the index is 0 elsewhere).

    >>> boxes = jnp.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [0.0, 0.0, 9.0, 8.0]])
    >>> index, is_kept = class_wise_nms(
    ...     boxes, jnp.array([0.9, 0.8, 0.7]), jnp.array([0, 0, 1]), jnp.ones(3, bool),
    ...     iou_threshold=0.6, max_detections=3)
    >>> index[is_kept].tolist()
    [0, 2]
    """
    num_boxes = boxes.shape[0]
    index = jnp.zeros(max_detections, jnp.int32)
    if num_boxes == 0:
        return index, jnp.zeros(max_detections, bool)
    boxes = at_least_float32(boxes)
    areas = box_area(boxes)
    scores = jnp.where(is_valid, at_least_float32(scores), -jnp.inf)
    positions = jnp.arange(num_boxes, dtype=jnp.int32)

    def is_unfinished(state: tuple[Array, Array, Array]) -> Array:
        count, _, remaining = state
        return (count < max_detections) & (jnp.max(remaining) > -jnp.inf)

    def take_best(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, index, remaining = state
        # Two plain reductions: an argmax is a scalar loop on the CPU.
        is_best = remaining == jnp.max(remaining)
        best = jnp.min(jnp.where(is_best, positions, num_boxes - 1))
        intersection = paired_intersection(boxes[best], boxes)  # [N]
        union = areas[best] + areas - intersection
        # NOTE: a product instead of a division, so that 0 / 0 does not suppress.
        overlaps = intersection > iou_threshold * union
        is_dropped = (overlaps & (labels == labels[best])) | (positions == best)
        return count + 1, index.at[count].set(best), jnp.where(is_dropped, -jnp.inf, remaining)

    count, index, _ = lax.while_loop(is_unfinished, take_best, (jnp.int32(0), index, scores))
    return index, jnp.arange(max_detections) < count


def class_wise_soft_nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    labels: Int[Array, " N"],
    is_valid: Bool[Array, " N"],
    *,
    kind: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_detections: int,
) -> tuple[Int[Array, " D"], Float[Array, " D"], Bool[Array, " D"]]:
    """The best `max_detections` boxes of soft NMS within each class.

    Soft NMS (Bodla et al., ICCV 2017, arXiv 1704.04503, Fig. 2) takes the box of the best score
    and lowers the score of every box left of its class by their overlap, again and again. A lowered
    score never exceeds the one just taken, so the first D boxes taken are the best D, and D rounds
    of O(N) work suffice.

    Args:
      boxes: xyxy px.
      scores: at least 0, higher is better; finite where `is_valid`. Equal scores go by the lower
        index.
      labels: class of each box; boxes of different classes do not influence each other.
      is_valid: False for slots that hold no box.
      kind: "linear" multiplies by 1 - IoU where the IoU is *greater* than `iou_threshold` (Eq. 2),
        "gaussian" by exp(-IoU^2 / sigma) everywhere (Eq. 3).
      iou_threshold: of "linear".
      sigma: of "gaussian".
      min_score: boxes whose score is, or becomes, less than this are dropped.
      max_detections: D.

    Returns:
      Index [D] of the boxes taken, their scores [D] (descending), and a mask [D] of the slots that
      are filled (index and score are 0 elsewhere).

    Raises:
      ValueError: unknown `kind`.

    >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 6.0]])
    >>> _, scores, _ = class_wise_soft_nms(
    ...     boxes, jnp.array([0.9, 0.8]), jnp.zeros(2, int), jnp.ones(2, bool),
    ...     kind="linear", iou_threshold=0.5, sigma=0.5, min_score=0.0, max_detections=2)
    >>> [round(float(s), 4) for s in scores]
    [0.9, 0.2]
    """
    if kind not in ("linear", "gaussian"):
        raise ValueError(f'kind={kind!r}: use "linear" or "gaussian".')
    num_boxes = boxes.shape[0]
    index = jnp.zeros(max_detections, jnp.int32)
    taken_scores = jnp.zeros(max_detections, jnp.float32)
    if num_boxes == 0:
        return index, taken_scores, jnp.zeros(max_detections, bool)
    boxes, scores = at_least_float32(boxes), at_least_float32(scores)
    areas = box_area(boxes)
    remaining = jnp.where(is_valid & (scores >= min_score), scores, -jnp.inf)
    positions = jnp.arange(num_boxes, dtype=jnp.int32)

    def is_unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        count, _, _, remaining = state
        return (count < max_detections) & (jnp.max(remaining) > -jnp.inf)

    def take_best(
        state: tuple[Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array]:
        count, index, taken_scores, remaining = state
        top = jnp.max(remaining)
        best = jnp.min(jnp.where(remaining == top, positions, num_boxes - 1))
        intersection = paired_intersection(boxes[best], boxes)  # [N]
        union = areas[best] + areas - intersection
        iou = jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
        if kind == "linear":
            factor = jnp.where(iou > iou_threshold, 1 - iou, 1)
        else:
            factor = jnp.exp(-jnp.square(iou) / sigma)
        lowered = jnp.where(labels == labels[best], remaining * factor, remaining)
        is_dropped = (positions == best) | ~(lowered >= min_score)
        return (
            count + 1,
            index.at[count].set(best),
            taken_scores.at[count].set(top),
            jnp.where(is_dropped, -jnp.inf, lowered),
        )

    start = (jnp.int32(0), index, taken_scores.astype(scores.dtype), remaining)
    count, index, taken_scores, _ = lax.while_loop(is_unfinished, take_best, start)
    return index, taken_scores, jnp.arange(max_detections) < count
