"""Recipe groups "loss" and "optim"."""

import dataclasses
from typing import Annotated, Literal

from atss_jax.config import ConfigGroup, Range
from atss_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(ConfigGroup, name="loss"):
    """See `losses.detection_losses`."""

    box_loss: Literal["giou", "diou", "ciou", "iou", "fcos_giou", "smooth_l1"] = "giou"
    """giou (paper Table 1), diou, ciou, iou (-ln IoU), fcos_giou (GIoU's form in FCOS), smooth_l1
    (beta 0.11)."""
    box_loss_weight: Annotated[float, Range(0)] = 2.0
    """Factor on the box loss (official REG_LOSS_WEIGHT)."""
    focal_alpha: Annotated[float, Range(0, 1)] = 0.25
    """Weight of positives in the focal loss (RetinaNet Sec. 5.1)."""
    focal_gamma: Annotated[float, Range(0)] = 2.0
    """Exponent of the focal loss."""
    normalizer: Literal["positives", "retinanet"] = "positives"
    """positives (ATSS, FCOS) or retinanet (positives + images; 4 x positives for boxes)."""
    cls_loss: Literal["focal", "quality_focal", "varifocal"] = "focal"
    """Classification: focal; quality_focal (GFL, arXiv 2006.04388) or varifocal (VarifocalNet,
    arXiv 2008.13367), whose target is the IoU of the predicted box."""
    quality_beta: Annotated[float, Range(1)] = 2.0
    """quality_focal: exponent of the distance to the target (GFL Sec. 4)."""
    varifocal_alpha: Annotated[float, Range(0)] = 0.75
    """varifocal: weight of negatives (VarifocalNet Sec. 4)."""
    varifocal_gamma: Annotated[float, Range(1)] = 2.0
    """varifocal: exponent of negatives."""
    box_weights: Literal["centerness", "score", "iou"] = "centerness"
    """Weights of positives in the box loss: centerness targets (where the head has a centerness
    branch, else none); score, the highest predicted class score (GFL); or iou, that of the
    predicted box (VarifocalNet)."""
    distribution_loss_weight: Annotated[float, Range(0)] = 0.25
    """With model.side_bins: factor on the distribution focal loss of each side (GFL Sec. 4), which
    is part of the box loss."""
    first_box_loss_weight: Annotated[float, Range(0)] = 1.5
    """With model.star_refinement: factor on the loss of the boxes before refinement (VarifocalNet
    Sec. 3.4), which is part of the box loss."""

    def check(self) -> None:
        """Predicted weights come with the normaliser that sums them."""
        if self.box_weights != "centerness" and self.normalizer != "positives":
            raise UserError(
                f"config.loss.box_weights={self.box_weights!r} with config.loss.normalizer="
                f'{self.normalizer!r}: that has no weights. Set normalizer="positives", or '
                'box_weights="centerness".'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(ConfigGroup, name="optim"):
    """Optimizer, schedule and length of the run; see `optim`."""

    name: str = "sgd"
    """Optimizer: sgd, adamw, or any optimizer function of optax (lion, lamb, adafactor, ...)."""
    learning_rate: Annotated[float, Range(above=0)] = 0.01
    """For `reference_batch` images per step (paper Sec. 3.1: 0.01 for 16)."""
    reference_batch: Annotated[int, Range(1)] = 16
    """Images per step that the learning rate was tuned for."""
    lr_scaling: Literal["linear", "none", "refuse"] = "linear"
    """What another global batch does to the learning rate."""
    schedule: Literal["steps", "cosine"] = "steps"
    """How the learning rate falls after warm-up."""
    num_steps: Annotated[int, Range(0)] = 90_000
    """Length of the run in steps; 0 where `num_epochs` says it."""
    num_epochs: Annotated[float, Range(0)] = 0.0
    """Length in passes over the training images; 0 where `num_steps` says it."""
    decay_at: Annotated[tuple[float, ...], Range(above=0, below=1)] = (60 / 90, 80 / 90)
    """steps: where the rate decays, as ascending fractions of the run."""
    decay_factor: Annotated[float, Range(above=0, high=1)] = 0.1
    """steps: factor on the rate at each decay."""
    warmup: Literal["constant", "linear"] = "constant"
    """Learning rate during warm-up: constant (the official ATSS files) or rising linearly."""
    warmup_steps: Annotated[int, Range(0)] = 500
    """Steps of warm-up; cut to half of the run where that is shorter."""
    warmup_factor: Annotated[float, Range(above=0, high=1)] = 1 / 3
    """Factor on the rate at the first step."""
    momentum: Annotated[float, Range(0, below=1)] = 0.9
    """sgd: momentum; adamw: b1; other optimizers keep optax's defaults."""
    weight_decay: Annotated[float, Range(0)] = 1e-4
    """Decay of kernels and of what is neither a bias nor frozen."""
    bias_lr_factor: Annotated[float, Range(above=0)] = 2.0
    """Factor on the learning rate of biases (official solver)."""
    bias_weight_decay: Annotated[float, Range(0)] = 0.0
    """Weight decay of biases (official solver)."""
    clip_norm: Annotated[float, Range(0)] = 0.0
    """Limit of the global gradient norm, 0 for none."""
    accumulate: Annotated[int, Range(1)] = 1
    """Micro-batches per step."""
    ema_decay: Annotated[float, Range(0, below=1)] = 0.0
    """Decay of the moving average of the parameters, and of the statistics of a trained batch norm,
    which is then evaluated; 0 for none."""

    def check(self) -> None:
        """Exactly one length; decays ascend."""
        if (self.num_steps > 0) == (self.num_epochs > 0):
            raise UserError(
                f"config.optim.num_steps={self.num_steps}, num_epochs={self.num_epochs}: give one "
                "of them, 0 for the other."
            )
        if list(self.decay_at) != sorted(set(self.decay_at)):
            raise UserError(f"config.optim.decay_at={self.decay_at}: must be ascending.")
