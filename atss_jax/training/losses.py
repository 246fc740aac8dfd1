"""Classification, box and centerness losses, normalised over the global batch.

ATSS Sec. 3.1 and 4.2, with the official normalisers. Global sums, then one division: under `jit`
the sums run over all devices, so the result does not depend on how the batch is split. For
micro-batches, `count_normalizers` of the whole batch are given to each; their losses then add up.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from atss_jax.errors import UserError
from atss_jax.geometry import boxes as box_ops
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import HeadOutputs, Losses, Targets
from atss_jax.training.box_losses import BOX_LOSSES, Regression
from atss_jax.training.config import LossConfig
from atss_jax.training.distribution_loss import distribution_focal_loss
from atss_jax.training.loss_counts import (
    MIN_CENTERNESS_SUM,
    MIN_PREDICTED_SUM,
    LossSums,
    Normalizers,
    count_normalizers,
)
from atss_jax.training.quality_losses import quality_focal_loss, quality_targets, varifocal_loss
from atss_jax.typing import Array, Float, Int

NORMALIZERS = ("positives", "retinanet")
MIN_QUALITY = 1e-6
"""Smallest target of a positive in the varifocal loss, to which 0 is a negative (mmdetection's)."""


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
    # Closed form for labels of 0 and 1: one softplus, where a soft label needs two logarithms.
    wrong = jnp.where(is_class, -logits, logits)  # logit of the wrong answer
    cross_entropy = jax.nn.softplus(wrong)  # -ln p_t
    weight = jnp.exp(gamma * (wrong - cross_entropy))  # (1 - p_t)^gamma
    return jnp.where(is_class, alpha, 1 - alpha) * cross_entropy * weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The losses with their settings: the keywords of `detection_losses` and more of `LossConfig`.

    Raises:
      ValueError: unknown box loss or normaliser.
    """

    regression: str = "box"
    box_loss: str = "giou"
    box_loss_weight: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    normalizer: str = "positives"
    cls_loss: str = "focal"
    quality_beta: float = 2.0
    box_weights: str = "centerness"
    varifocal_alpha: float = 0.75
    varifocal_gamma: float = 2.0
    distribution_loss_weight: float = 0.25
    first_box_loss_weight: float = 1.5

    def __post_init__(self):
        """Checks the words."""
        if self.box_loss not in BOX_LOSSES or (
            self.box_loss == "fcos_giou" and self.regression != "point"
        ):
            raise UserError(
                f"box_loss={self.box_loss!r} with regression={self.regression!r}: use one of "
                f'{", ".join(BOX_LOSSES)} (fcos_giou with regression="point" only).'
            )
        if self.normalizer not in NORMALIZERS:
            raise UserError(f"normalizer={self.normalizer!r}: use one of {', '.join(NORMALIZERS)}.")

    @property
    def has_fixed_counts(self) -> bool:
        """Whether targets alone decide what losses are divided by; else predictions do, too."""
        return self.box_weights == "centerness"

    def __call__(
        self,
        outputs: HeadOutputs,
        targets: Targets,
        grid: AnchorGrid,
        normalizers: Normalizers | None = None,
    ) -> Losses:
        """The losses of a batch; see `detection_losses`."""
        sums = self.sums(outputs, targets, grid)
        norms = self.count(outputs, targets, grid) if normalizers is None else normalizers
        return self.combine(sums, norms, has_centerness=outputs.centerness_logits is not None)

    def count(self, outputs: HeadOutputs, targets: Targets, grid: AnchorGrid) -> Normalizers:
        """What the losses of a batch are divided by; those of micro-batches add up."""
        norms = count_normalizers(targets)
        if self.has_fixed_counts:
            return norms
        weights = self._box_weights(
            outputs, targets, self._pair(outputs.box_regression, targets, grid)
        )
        total = first_total = jnp.sum(weights)
        if outputs.first_boxes is not None:
            first = self._pair(outputs.first_boxes, targets, grid)
            first_total = jnp.sum(self._box_weights(outputs, targets, first))
        return norms._replace(box_weight_sum=total, first_weight_sum=first_total)

    def sums(self, outputs: HeadOutputs, targets: Targets, grid: AnchorGrid) -> LossSums:
        """Sums of all losses over a batch, not normalised."""
        batch = targets.labels.shape[0]
        pair = self._pair(outputs.box_regression, targets, grid)
        quality = None if self.cls_loss == "focal" else _overlaps(pair, targets)
        cls_sum = jnp.zeros((), jnp.float32)
        for level, logits in enumerate(outputs.cls_logits):
            start = grid.level_starts[level]
            part = slice(start, start + grid.num_per_level[level])
            flat = logits.reshape(batch, -1, logits.shape[-1])
            labels = targets.labels[:, part]
            losses = self._cls_losses(flat, labels, None if quality is None else quality[:, part])
            ignored = targets.is_ignored[:, part, None]
            cls_sum = cls_sum + jnp.sum(jnp.where(ignored, 0, losses))

        is_weighted = self._is_weighted(outputs.centerness_logits is not None)

        def box_sum(pair: Regression, losses: Array) -> Array:
            weights = self._box_weights(outputs, targets, pair) if is_weighted else 1
            return jnp.sum(jnp.where(targets.is_positive, losses, 0) * weights)

        box = box_sum(pair, BOX_LOSSES[self.box_loss](pair))
        distribution = first_box = jnp.zeros((), box.dtype)
        if outputs.side_logits is not None:
            losses = self._distribution_losses(outputs.side_logits, pair, targets)
            distribution = box_sum(pair, losses)
        if outputs.first_boxes is not None:
            first = self._pair(outputs.first_boxes, targets, grid)
            first_box = box_sum(first, BOX_LOSSES[self.box_loss](first))

        centerness_sum = jnp.zeros((), jnp.float32)
        if outputs.centerness_logits is not None:
            entropy = optax.losses.sigmoid_binary_cross_entropy(
                box_ops.at_least_float32(_flat(outputs.centerness_logits, batch)),
                targets.centerness,
            )
            centerness_sum = jnp.sum(jnp.where(targets.is_positive, entropy, 0))
        return LossSums(cls_sum, box, distribution, first_box, centerness_sum)

    def combine(self, sums: LossSums, norms: Normalizers, *, has_centerness: bool) -> Losses:
        """Sums divided by the counts of the global batch.

        Args:
          sums: of a batch, or of a micro-batch of it.
          norms: of the whole global batch.
          has_centerness: whether the head has a centerness branch.
        """
        at_least_one = jnp.maximum(norms.num_positives, 1)
        cls_count = at_least_one
        if self.normalizer == "retinanet":
            cls_count = norms.num_positives + norms.num_images
        box_count = first_count = at_least_one
        if self._is_weighted(has_centerness):
            smallest = MIN_CENTERNESS_SUM if self.has_fixed_counts else MIN_PREDICTED_SUM
            box_count = jnp.maximum(norms.box_weight_sum, smallest)
            first_count = jnp.maximum(norms.first_weight_sum, smallest)
        cls = sums.cls / cls_count
        box = sums.box / box_count * self.box_loss_weight
        box = box + sums.distribution / box_count * self.distribution_loss_weight
        box = box + sums.first_box / first_count * self.first_box_loss_weight
        centerness = sums.centerness / at_least_one
        return Losses(cls + box + centerness, cls, box, centerness, norms.num_positives)

    def _is_weighted(self, has_centerness: bool) -> bool:
        """Whether box losses are weighted."""
        return not self.has_fixed_counts or (self.normalizer == "positives" and has_centerness)

    def _box_weights(self, outputs: HeadOutputs, targets: Targets, pair: Regression) -> Array:
        """Weights of the losses of some boxes [B, A], 0 where not positive; without gradient."""
        if self.box_weights == "centerness":
            return targets.centerness
        if self.box_weights == "iou":
            return _overlaps(pair, targets)
        batch, classes = targets.labels.shape[0], outputs.cls_logits[0].shape[-1]
        logits = box_ops.at_least_float32(_flat(outputs.cls_logits, batch, classes))
        best = jnp.max(jnp.where(targets.is_positive[..., None], logits, 0), axis=-1)
        return lax.stop_gradient(jnp.where(targets.is_positive, jax.nn.sigmoid(best), 0))

    def _cls_losses(self, logits: Array, labels: Array, quality: Array | None) -> Array:
        """Loss of every anchor and class [B, N, K] of a level."""
        if quality is None:
            return focal_loss(logits, labels, alpha=self.focal_alpha, gamma=self.focal_gamma)
        if self.cls_loss == "quality_focal":
            target = quality_targets(labels, quality, logits.shape[-1])
            return quality_focal_loss(logits, target, beta=self.quality_beta)
        quality = jnp.maximum(quality, MIN_QUALITY)
        target = quality_targets(labels, quality, logits.shape[-1])
        return varifocal_loss(
            logits, target, alpha=self.varifocal_alpha, gamma=self.varifocal_gamma
        )

    def _distribution_losses(
        self, side_logits: tuple[Array, ...], pair: Regression, targets: Targets
    ) -> Array:
        """Mean over the sides of every anchor [B, A]; any number where not positive."""
        logits = _flat(side_logits, targets.labels.shape[0], *side_logits[0].shape[-2:])
        logits = jnp.where(targets.is_positive[..., None, None], logits, 0)
        return jnp.mean(distribution_focal_loss(logits, pair.encoded_goal()), axis=-1)

    def _pair(self, boxes: tuple[Array, ...], targets: Targets, grid: AnchorGrid) -> Regression:
        """Predictions of boxes beside their goals; harmless numbers where not positive."""
        values = _flat(boxes, targets.labels.shape[0], 4)
        positive = targets.is_positive[..., None]
        predicted = jnp.where(positive, box_ops.at_least_float32(values), 0)
        dtype = predicted.dtype
        anchors = jnp.asarray(grid.boxes(), dtype)
        return Regression(
            values=predicted,
            # Where not positive, the anchor's own box: what comes of it is masked at the end.
            goal=jnp.where(positive, targets.boxes.astype(dtype), anchors),
            anchors=anchors,
            points=jnp.asarray(grid.centers(), dtype),
            strides=jnp.asarray(grid.anchor_strides(), dtype),
            kind=self.regression,
        )


def _overlaps(pair: Regression, targets: Targets) -> Array:
    """IoU of each predicted box with its goal [B, A], 0 where not positive; without gradient."""
    iou = box_ops.paired_iou(pair.decoded(), pair.goal)
    return lax.stop_gradient(jnp.where(targets.is_positive, iou, 0))


def _flat(maps: tuple[Array, ...], batch: int, *rest: int) -> Array:
    """Maps of all levels as one array [B, A, *rest]."""
    return jnp.concatenate([x.reshape(batch, -1, *rest) for x in maps], axis=1)


def make_losses(config: LossConfig, regression: str) -> LossSettings:
    """The losses of a recipe.

    Args:
      config: group "loss".
      regression: "box" or "point", the head's.

    Raises:
      UserError: fcos_giou with regression "box".
    """
    return LossSettings(
        regression=regression,
        box_loss=config.box_loss,
        box_loss_weight=config.box_loss_weight,
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
        normalizer=config.normalizer,
        cls_loss=config.cls_loss,
        quality_beta=config.quality_beta,
        box_weights=config.box_weights,
        varifocal_alpha=config.varifocal_alpha,
        varifocal_gamma=config.varifocal_gamma,
        distribution_loss_weight=config.distribution_loss_weight,
        first_box_loss_weight=config.first_box_loss_weight,
    )


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
    """The paper's losses of a global batch (ATSS Sec. 4.2; official normalisers).

    With no positives, box and centerness losses are exactly 0. Ignored anchors have no loss.

    Args:
      outputs: predictions, leading B.
      targets: what they should be, leading B.
      grid: the anchors of the batch's bucket.
      regression: "box" or "point", the head's.
      box_loss: one of `box_losses.BOX_LOSSES`.
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
    settings = LossSettings(
        regression=regression,
        box_loss=box_loss,
        box_loss_weight=box_loss_weight,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        normalizer=normalizer,
    )
    return settings(outputs, targets, grid, normalizers)
