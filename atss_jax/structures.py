"""The nouns of the package. Read this file first.

Every bundle is a `NamedTuple`, so it is a JAX pytree and plain data. Shapes are given for one
image; a batch has a leading `B` on every field (hence `...` in the annotations). Letters are
explained in `atss_jax.typing`. Boxes are `xyxy` in absolute, continuous pixels (a pixel `i` spans
`[i, i + 1)`, width = x2 - x1), float32.
"""

from typing import NamedTuple

from atss_jax.typing import AnyArray, Array, Bool, Float, Int, UInt8


class GroundTruth(NamedTuple):
    """The annotated objects of an image, padded to a fixed number of slots.

    Padded slots are known by `is_valid` alone, never by area, label or coordinates.
    """

    boxes: Float[AnyArray, "*B G 4"]
    """xyxy px in the padded image frame; finite, x1 < x2 and y1 < y2 where valid."""
    labels: Int[AnyArray, "*B G"]
    """Dense class index in [0, K)."""
    is_valid: Bool[AnyArray, "*B G"]
    """False for padding."""


class Batch(NamedTuple):
    """What the loader yields: images of one bucket with their ground truth."""

    image: UInt8[AnyArray, "*B H W 3"]
    """RGB, 0..255; content in the upper left corner, padding 0."""
    image_size: Int[AnyArray, "*B 2"]
    """(h, w) of the content, px, after resizing."""
    ground_truth: GroundTruth
    record_index: Int[AnyArray, "*B"]
    """int32 index into the data set's records (`dataset.image_ids[i]` is the COCO id); -1 marks
    the rows that fill up the last batches of an evaluation."""
    scale: Float[AnyArray, "*B 2"]
    """(y, x) factors: resized = original * scale."""


class HeadOutputs(NamedTuple):
    """Raw predictions, one entry per pyramid level."""

    cls_logits: tuple[Float[Array, "*B h w a K"], ...]
    box_regression: tuple[Float[Array, "*B h w a 4"], ...]
    """Deltas (dx, dy, dw, dh) or distances (l, t, r, b) in strides, by the regression type."""
    centerness_logits: tuple[Float[Array, "*B h w a"], ...] | None
    """None when the head has no centerness branch."""
    side_logits: tuple[Float[Array, "*B h w a 4 bins"], ...] | None = None
    """In training: logits of the distributions whose means are the distances; None without them."""
    first_boxes: tuple[Float[Array, "*B h w a 4"], ...] | None = None
    """In training: distances before they were refined; None without refinement."""


class Predictions(NamedTuple):
    """What the network says at each anchor, as assigners look at it; carries no gradient."""

    scores: Float[Array, "*B A K"]
    """Class probabilities."""
    boxes: Float[Array, "*B A 4"]
    """xyxy px in the padded image frame, not clipped."""


class Assignment(NamedTuple):
    """Which ground truth each anchor belongs to: the answer of every assigner."""

    gt_index: Int[Array, "*B A"]
    """Always a valid index into the ground-truth slots; meaningful where `is_positive`."""
    is_positive: Bool[Array, "*B A"]
    """Whether the anchor is to find that object."""
    is_ignored: Bool[Array, "*B A"]
    """Anchors without loss: outside the image's own grid, or between thresholds."""


class Targets(NamedTuple):
    """What the network should say at each anchor."""

    labels: Int[Array, "*B A"]
    """Class index where positive, -1 elsewhere."""
    boxes: Float[Array, "*B A 4"]
    """xyxy px of the matched ground truth; the anchor's own box where not positive."""
    centerness: Float[Array, "*B A"]
    """In [0, 1] where positive, 0 elsewhere."""
    is_positive: Bool[Array, "*B A"]
    is_ignored: Bool[Array, "*B A"]


class Losses(NamedTuple):
    """Scalars of one global batch."""

    total: Float[Array, ""]
    cls: Float[Array, ""]
    box: Float[Array, ""]
    centerness: Float[Array, ""]
    num_positives: Float[Array, ""]
    """Positive anchors in the global batch."""


class Detections(NamedTuple):
    """Final detections of an image, sorted by descending score, padded to a fixed number."""

    boxes: Float[AnyArray, "*B D 4"]
    """xyxy px in the original image's frame."""
    scores: Float[AnyArray, "*B D"]
    """In [0, 1]."""
    labels: Int[AnyArray, "*B D"]
    """Dense class index in [0, K)."""
    is_valid: Bool[AnyArray, "*B D"]
    """False for padding."""
