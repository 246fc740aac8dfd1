"""Targets: what the network should say at each anchor, from an assignment and the ground truth.

Stands between the assigners and the losses. Regression targets stay boxes in px: the losses encode
them against the anchors where they need deltas or distances (`boxes.encode_deltas`,
`boxes.encode_points`). Nothing here carries a gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import (
    at_least_float32,
    centerness,
    decode_deltas,
    decode_points,
)
from atss_jax.structures import Assignment, GroundTruth, HeadOutputs, Predictions, Targets
from atss_jax.typing import AnyArray, Array, Int

Assign = Callable[..., Assignment]
"""An assigner with its hyper-parameters bound: (grid, image_size, gt) -> Assignment, or
(grid, image_size, gt, predictions) -> Assignment."""


def make_targets(assignment: Assignment, gt: GroundTruth, grid: AnchorGrid) -> Targets:
    """Labels, boxes and centerness for each anchor; one image.

    Args:
      assignment: of the image's anchors.
      gt: objects of the image.
      grid: the anchors.

    >>> gt = GroundTruth(jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([3]), jnp.array([True]))
    >>> grid = AnchorGrid((32, 64))
    >>> first = jnp.arange(grid.num_anchors) == 0
    >>> targets = make_targets(Assignment(jnp.zeros_like(first, int), first, ~first), gt, grid)
    >>> targets.labels[:2].tolist(), targets.centerness[:2].tolist()
    ([3, -1], [1.0, 0.0])
    """
    positive = assignment.is_positive
    all_boxes = at_least_float32(jnp.asarray(gt.boxes))
    anchors = jnp.asarray(grid.boxes(), all_boxes.dtype)
    boxes = jnp.where(positive[:, None], all_boxes[assignment.gt_index], anchors)
    centers = jnp.asarray(grid.centers(), all_boxes.dtype)
    targets = Targets(
        labels=jnp.where(positive, gt.labels[assignment.gt_index], -1),
        boxes=boxes,
        centerness=jnp.where(positive, centerness(centers, boxes), 0),
        is_positive=positive,
        is_ignored=assignment.is_ignored,
    )
    return jax.lax.stop_gradient(targets)


def assign_targets(
    assign: Assign,
    grid: AnchorGrid,
    image_size: Int[AnyArray, "B 2"],
    ground_truth: GroundTruth,
    *,
    predictions: Predictions | None = None,
    mesh: Mesh | None = None,
) -> Targets:
    """Targets of a batch: each image on the device that holds it, without communication.

    Args:
      assign: (grid, image_size, gt) -> Assignment of one image, such as
        `functools.partial(assign_atss, candidates_per_level=9)`.
      grid: the anchors (static).
      image_size: (h, w) of each image's content, px.
      ground_truth: objects, with leading B.
      predictions: of the batch, for assigners that look at them (`registry.needs_predictions`).
      mesh: devices with an axis "data" over which the batch is sharded; None for one device.

    Returns:
      Targets with leading B, sharded as the batch.
    """

    def targets_of_one(image_size, gt, *predictions):
        return make_targets(assign(grid, image_size, gt, *predictions), gt, grid)

    arguments = (image_size, ground_truth, *(() if predictions is None else (predictions,)))
    targets_of_many = jax.vmap(targets_of_one)
    if mesh is not None:
        # Left to the partitioner, the selection of candidates would gather the batch.
        spec = PartitionSpec("data")
        targets_of_many = jax.shard_map(
            targets_of_many, mesh=mesh, in_specs=(spec,) * len(arguments), out_specs=spec
        )
    return targets_of_many(*jax.lax.stop_gradient(arguments))


def predictions_of(outputs: HeadOutputs, grid: AnchorGrid, regression: str) -> Predictions:
    """Class probabilities and decoded boxes at every anchor, without gradient.

    Args:
      outputs: of the network, leading B.
      grid: the anchors of the batch's bucket.
      regression: "box" or "point", the head's.
    """

    def flat(levels: tuple) -> Array:
        parts = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels]
        return at_least_float32(jnp.concatenate(parts, axis=1))

    found = flat(outputs.box_regression)
    if regression == "box":
        boxes = decode_deltas(found, jnp.asarray(grid.boxes(), found.dtype))
    else:
        centers, strides = grid.centers(), grid.anchor_strides()
        boxes = decode_points(found, jnp.asarray(centers), jnp.asarray(strides))
    scores = jax.nn.sigmoid(flat(outputs.cls_logits))
    return jax.lax.stop_gradient(Predictions(scores, boxes))
