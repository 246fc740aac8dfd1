"""Targets: what the network should say at each anchor, from an assignment and the ground truth.

Stands between the assigners and the losses. Regression targets stay boxes in px: the losses encode
them against the anchors where they need deltas or distances (`boxes.encode_deltas`,
`boxes.encode_points`). Nothing here carries a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from atss_jax.assigners.registry import Assigner
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, centerness, decode_deltas, decode_points
from atss_jax.structures import Assignment, GroundTruth, HeadOutputs, Predictions, Targets
from atss_jax.typing import AnyArray, Array, Int


def predictions_of(outputs: HeadOutputs, grid: AnchorGrid, *, regression: str) -> Predictions:
    """What a batch of raw outputs says at each anchor, for assigners; carries no gradient.

    Args:
      outputs: of the network, leading B.
      grid: the anchors of the batch's bucket.
      regression: "box" or "point", the head's.
    """
    batch = outputs.cls_logits[0].shape[0]
    logits = [x.reshape(batch, -1, x.shape[-1]) for x in outputs.cls_logits]
    values = jnp.concatenate([x.reshape(batch, -1, 4) for x in outputs.box_regression], axis=1)
    values = at_least_float32(values)
    if regression == "box":
        boxes = decode_deltas(values, jnp.asarray(grid.boxes(), values.dtype))
    else:
        points = jnp.asarray(grid.centers(), values.dtype)
        boxes = decode_points(values, points, jnp.asarray(grid.anchor_strides(), values.dtype))
    scores = jax.nn.sigmoid(at_least_float32(jnp.concatenate(logits, axis=1)))
    return jax.lax.stop_gradient(Predictions(scores, boxes))


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
    assign: Assigner,
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
      predictions: with leading B, for assigners that look at them; None for the others.
      mesh: devices with an axis "data" over which the batch is sharded; None for one device.

    Returns:
      Targets with leading B, sharded as the batch.
    """

    def targets_of_one(image_size: Array, gt: GroundTruth, *predictions: Predictions) -> Targets:
        return make_targets(assign(grid, image_size, gt, *predictions), gt, grid)

    inputs: tuple[Any, ...] = (image_size, jax.lax.stop_gradient(ground_truth))
    if predictions is not None:
        inputs += (predictions,)
    targets_of_many = jax.vmap(targets_of_one)
    if mesh is not None:
        # Left to the partitioner, the selection of candidates would gather the batch.
        spec = PartitionSpec("data")
        targets_of_many = jax.shard_map(
            targets_of_many, mesh=mesh, in_specs=(spec,) * len(inputs), out_specs=spec
        )
    return targets_of_many(*inputs)
