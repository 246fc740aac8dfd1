"""Exact class-wise non-maximum suppression with fixed shapes and without an N x N matrix.

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

    Greedy NMS takes boxes by falling score and drops every box that overlaps a taken one of its
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
      Index [D] of the survivors by falling score, and a mask [D] of the slots that are filled
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

    def is_unfinished(state):
        count, _, remaining = state
        return (count < max_detections) & (jnp.max(remaining) > -jnp.inf)

    def take_best(state):
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
