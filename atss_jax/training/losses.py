"""Classification, box and centerness losses, normalised over the global batch.

ATSS Sec. 3.1 and 4.2, with the official normalisers. Global sums, then one division: under `jit`
the sums run over all devices, so the result does not depend on how the batch is split. For
micro-batches, `normalizers` of the whole batch are given to each; their losses then add up.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from atss_jax.geometry import boxes as box_ops
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import HeadOutputs, Losses, Targets
from atss_jax.typing import Array, Float, Int

BOX_LOSSES = ("giou", "iou", "fcos_giou", "smooth_l1")
NORMALIZERS = ("positives", "retinanet")

SMOOTH_L1_BETA = 0.11
"""Where smooth-L1 turns from quadratic to linear (official RetinaNet configs)."""

MIN_CENTERNESS_SUM = 1e-6
"""Lower limit of the box loss' denominator, which is 0 without positives."""


class Normalizers(NamedTuple):
    """What the sums of losses are divided by; all over one global batch."""

    num_positives: Float[Array, ""]
    centerness_sum: Float[Array, ""]
    num_images: Float[Array, ""]


class LossSums(NamedTuple):
    """Sums of the losses over anchors, before any division."""

    cls: Float[Array, ""]
    box: Float[Array, ""]
    centerness: Float[Array, ""]


def normalizers(targets: Targets) -> Normalizers:
    """The counts that losses are divided by. They depend on targets alone.

    Args:
      targets: of a batch.
    """
    kind = targets.centerness.dtype
    return Normalizers(
        jnp.sum(targets.is_positive, dtype=kind),
        jnp.sum(jnp.where(targets.is_positive, targets.centerness, 0)),
        jnp.asarray(targets.labels.shape[0], kind),
    )


def focal_loss(
    logits: Float[Array, "*N K"], labels: Int[Array, "*N"], *, alpha: float, gamma: float
) -> Float[Array, "*N K"]:
    """Sigmoid focal loss of every class, not reduced.

    Lin et al. 2017, eq. 5.

    Args:
      logits: class scores before the sigmoid.
      labels: class index, -1 for background (all classes negative).
      alpha: weight of the positive class; that of the others is 1 - alpha.
      gamma: focusing exponent.
    """
    logits = box_ops.at_least_float32(logits)
    is_class = labels[..., None] == jnp.arange(logits.shape[-1])
    return optax.losses.sigmoid_focal_loss(
        logits, is_class.astype(logits.dtype), alpha=alpha, gamma=gamma
    )


def smooth_l1(difference: Float[Array, "*N"], *, beta: float) -> Float[Array, "*N"]:
    """0.5 d^2 / beta up to |d| = beta, |d| - beta / 2 beyond; not reduced."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * jnp.square(size) / beta, size - 0.5 * beta)


def fcos_iou_loss(
    predicted: Float[Array, "*N 4"], target: Float[Array, "*N 4"], *, kind: str
) -> Float[Array, "*N"]:
    """FCOS' box loss of distances (l, t, r, b), paired, not reduced.

    FCOS adds 1 to intersection and union, so the value depends on the unit of the distances.

    Args:
      predicted: not negative.
      target: not negative.
      kind: "iou" for -ln IoU (UnitBox, Yu et al. 2016), "giou" for 1 - GIoU.
    """
    zero = jnp.zeros_like(predicted[..., :2])
    predicted_boxes = box_ops.ltrb_to_boxes(zero, box_ops.at_least_float32(predicted))
    target_boxes = box_ops.ltrb_to_boxes(zero, box_ops.at_least_float32(target))
    intersection = box_ops.paired_intersection(predicted_boxes, target_boxes)
    areas = box_ops.box_area(predicted_boxes) + box_ops.box_area(target_boxes)
    union = areas - intersection
    iou = (intersection + 1) / (union + 1)
    if kind == "iou":
        return -jnp.log(iou)
    hull_sides = jnp.maximum(predicted, target)
    hull = (hull_sides[..., 0] + hull_sides[..., 2]) * (hull_sides[..., 1] + hull_sides[..., 3])
    hull = jnp.maximum(hull, box_ops.IOU_EPSILON)  # two empty boxes
    return 1 - (iou - (hull - union) / hull)


def _box_losses(
    regression_values: Array, targets: Targets, grid: AnchorGrid, regression: str, kind: str
) -> Array:
    """Box loss of every anchor [B, A], 0 where not positive."""
    positive = targets.is_positive[..., None]
    predicted = jnp.where(positive, box_ops.at_least_float32(regression_values), 0)
    dtype = predicted.dtype
    anchors = jnp.asarray(grid.boxes(), dtype)
    points, strides = jnp.asarray(grid.centers(), dtype), jnp.asarray(grid.anchor_strides(), dtype)
    # Where not positive the target is the anchor's own box: harmless numbers, masked at the end.
    goal = jnp.where(positive, targets.boxes.astype(dtype), anchors)
    if kind == "smooth_l1":
        if regression == "box":
            encoded = box_ops.encode_deltas(goal, anchors)
        else:
            encoded = box_ops.encode_points(goal, points, strides)
        losses = jnp.mean(smooth_l1(predicted - encoded, beta=SMOOTH_L1_BETA), axis=-1)
    elif regression == "point" and kind in ("iou", "fcos_giou"):
        unit = strides[:, None] if kind == "iou" else jnp.ones((), dtype)  # px or strides
        encoded = box_ops.encode_points(goal, points, strides)
        losses = fcos_iou_loss(
            predicted * unit, encoded * unit, kind="iou" if kind == "iou" else "giou"
        )
    else:
        if regression == "box":
            decoded = box_ops.decode_deltas(predicted, anchors)
        else:
            decoded = box_ops.decode_points(predicted, points, strides)
        if kind == "giou":
            losses = 1 - box_ops.paired_giou(decoded, goal)
        else:
            intersection = box_ops.paired_intersection(decoded, goal)
            union = box_ops.box_area(decoded) + box_ops.box_area(goal) - intersection
            losses = -jnp.log((intersection + 1) / (union + 1))
    return jnp.where(targets.is_positive, losses, 0)


def detection_loss_sums(
    outputs: HeadOutputs,
    targets: Targets,
    grid: AnchorGrid,
    *,
    regression: str = "box",
    box_loss: str = "giou",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    normalizer: str = "positives",
) -> LossSums:
    """Sums of all losses over a batch, not normalised; arguments as in `detection_losses`."""
    if box_loss not in BOX_LOSSES or (box_loss == "fcos_giou" and regression != "point"):
        raise ValueError(
            f"box_loss={box_loss!r} with regression={regression!r}: use one of "
            f'{", ".join(BOX_LOSSES)} (fcos_giou with regression="point" only).'
        )
    cls_sum = jnp.zeros((), jnp.float32)
    for level, logits in enumerate(outputs.cls_logits):
        start = grid.level_starts[level]
        part = slice(start, start + grid.num_per_level[level])
        flat = logits.reshape(logits.shape[0], -1, logits.shape[-1])
        focal = focal_loss(flat, targets.labels[:, part], alpha=focal_alpha, gamma=focal_gamma)
        ignored = targets.is_ignored[:, part, None]
        cls_sum = cls_sum + jnp.sum(jnp.where(ignored, 0, focal))

    batch = targets.labels.shape[0]
    values = jnp.concatenate([x.reshape(batch, -1, 4) for x in outputs.box_regression], axis=1)
    box = _box_losses(values, targets, grid, regression, box_loss)
    if _is_weighted(normalizer, outputs.centerness_logits is not None):
        box = box * targets.centerness

    centerness_sum = jnp.zeros((), jnp.float32)
    if outputs.centerness_logits is not None:
        logits = jnp.concatenate([x.reshape(batch, -1) for x in outputs.centerness_logits], axis=1)
        entropy = optax.losses.sigmoid_binary_cross_entropy(
            box_ops.at_least_float32(logits), targets.centerness
        )
        centerness_sum = jnp.sum(jnp.where(targets.is_positive, entropy, 0))
    return LossSums(cls_sum, jnp.sum(box), centerness_sum)


def _is_weighted(normalizer: str, has_centerness: bool) -> bool:
    """Whether box losses are weighted by centerness targets."""
    return normalizer == "positives" and has_centerness


def combine(
    sums: LossSums,
    norms: Normalizers,
    *,
    box_loss_weight: float,
    normalizer: str = "positives",
    has_centerness: bool = True,
) -> Losses:
    """Sums divided by the counts of the global batch.

    Args:
      sums: of a batch, or of micro-batches added up.
      norms: of the whole global batch.
      box_loss_weight: see `detection_losses`.
      normalizer: see `detection_losses`.
      has_centerness: whether the head has a centerness branch.

    Raises:
      ValueError: unknown normaliser.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer={normalizer!r}: use one of {', '.join(NORMALIZERS)}.")
    at_least_one = jnp.maximum(norms.num_positives, 1)
    cls_count = at_least_one
    if normalizer == "retinanet":
        cls_count = norms.num_positives + norms.num_images
    box_count = at_least_one
    if _is_weighted(normalizer, has_centerness):
        box_count = jnp.maximum(norms.centerness_sum, MIN_CENTERNESS_SUM)
    cls = sums.cls / cls_count
    box = sums.box / box_count * box_loss_weight
    centerness = sums.centerness / at_least_one
    return Losses(cls + box + centerness, cls, box, centerness, norms.num_positives)


def detection_losses(
    outputs: HeadOutputs,
    targets: Targets,
    grid: AnchorGrid,
    *,
    regression: str = "box",
    box_loss: str = "giou",
    box_loss_weight: float = 2.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    normalizer: str = "positives",
    normalizers: Normalizers | None = None,
) -> Losses:
    """The losses of a global batch (ATSS Sec. 4.2; official normalisers).

    With no positives, box and centerness losses are exactly 0. Ignored anchors have no loss.

    Args:
      outputs: predictions, leading B.
      targets: what they should be, leading B.
      grid: the anchors of the batch's bucket.
      regression: "box" or "point", the head's.
      box_loss: "giou" (1 - GIoU of boxes in px), "iou" (-ln((I + 1) / (U + 1)) in px, FCOS as
        first published), "fcos_giou" (FCOS' own GIoU of distances in strides) or "smooth_l1"
        (mean over the four encoded coordinates).
      box_loss_weight: 2 in ATSS, 1 in FCOS and RetinaNet.
      focal_alpha: see `focal_loss`.
      focal_gamma: see `focal_loss`.
      normalizer: "positives" (ATSS, FCOS: classification and centerness over positives, box loss
        weighted by centerness targets over their sum; over positives, unweighted, where the head
        has no centerness branch) or "retinanet" (classification over positives + images, box loss
        unweighted over positives).
      normalizers: counts of the whole global batch where `targets` are a micro-batch of it.

    Returns:
      Scalars. `num_positives` is that of `normalizers`.

    Raises:
      ValueError: unknown box loss or normaliser.
    """
    sums = detection_loss_sums(
        outputs,
        targets,
        grid,
        regression=regression,
        box_loss=box_loss,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        normalizer=normalizer,
    )
    norms = _normalizers(targets) if normalizers is None else normalizers
    return combine(
        sums,
        norms,
        box_loss_weight=box_loss_weight,
        normalizer=normalizer,
        has_centerness=outputs.centerness_logits is not None,
    )


_normalizers = normalizers  # the keyword of `detection_losses` hides the function's name
