"""Recipe group "model": the network."""

import dataclasses
from typing import Annotated, Literal

from atss_jax.config import ConfigGroup, Range
from atss_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ConfigGroup, name="model"):
    """Backbone, feature pyramid and head; see `detector.DetectorNetwork`."""

    backbone: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "convnext_tiny",
    ] = "resnet50"
    """Architecture of the backbone."""
    flavour: Literal["torchvision", "msra"] = "msra"
    """ResNets: where a bottleneck has its stride, in the 3x3 (torchvision) or the first 1x1 (msra,
    the official weights). ResNeXts have it in the 3x3 in both."""
    backbone_norm: Literal["frozen_bn", "batch_norm", "group_norm"] = "frozen_bn"
    """ResNets: normalisation; batch_norm uses statistics of the global batch."""
    width: Annotated[float, Range(above=0)] = 1.0
    """Factor on the widths of all backbone stages."""
    stem_channels: Annotated[int, Range(1)] = 64
    """ResNets: channels of the stem, which `width` leaves alone."""
    frozen_stages: Annotated[int, Range(0, 5)] = 2
    """Stages without training: 0 none, 1 the stem, 2 also C2 (the official FREEZE_CONV_BODY_AT)."""
    dcn_stages: tuple[Literal[2, 3, 4, 5], ...] = ()
    """ResNets: backbone stages whose 3x3 convolutions are deformable."""
    init_from: str = "data/weights/R-50.safetensors"
    """Weights to start from: the workdir of a run, a file (safetensors, npz; backbone or detector)
    or a name of the Hugging Face Hub (`timm/resnet50.tv_in1k`, `hf://owner/name@revision/file`); ""
    for random."""
    fpn_channels: Annotated[int, Range(1)] = 256
    """Width of P3 to P7 and of the head."""
    p6_from: Literal["p5", "c5"] = "p5"
    """Input of P6: p5 (ATSS, FCOS) or c5 (RetinaNet)."""
    relu_before_p7: bool = True
    """Whether P7 is computed from relu(P6)."""
    dynamic_blocks: Annotated[int, Range(0)] = 0
    """Blocks of attention over levels, places and channels before the towers (Dynamic head, arXiv
    2106.08322: 6, with head_convs 0)."""
    head_convs: Annotated[int, Range(0)] = 4
    """3x3 convolutions of each tower."""
    head_norm: Literal["group_norm", "none"] = "group_norm"
    """Normalisation after each convolution of the towers."""
    head_dcn: bool = False
    """The last convolution of both towers is deformable."""
    level_scale: bool = True
    """A learned factor per level on the box regression."""
    centerness: Literal["box", "cls", "none"] = "box"
    """Tower that carries the centerness branch: box (ATSS), cls (FCOS as first published) or none
    (RetinaNet)."""
    regression: Literal["box", "point"] = "box"
    """Deltas against the anchor (box), or distances from its centre (point)."""
    point_activation: Literal["relu", "exp"] = "relu"
    """Activation of point regression: relu (normalised by the stride) or exp."""
    side_bins: Annotated[int, Range(0)] = 0
    """Point regression: each distance is the mean of a distribution over 0, 1, ..., side_bins
    strides (GFL, arXiv 2006.04388: 16); 0 for a plain number."""
    distribution_quality: bool = False
    """With side_bins: class scores are multiplied by a quality that is told from the shape of the
    distributions (GFLv2, arXiv 2011.12885)."""
    star_refinement: bool = False
    """Plain point regression: class scores and a factor on each distance come from features sampled
    on the first predicted box (VarifocalNet, arXiv 2008.13367)."""
    class_prior: Annotated[float, Range(above=0, below=1)] = 0.01
    """Initial probability of each class (focal loss paper, Sec. 4.1)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network; parameters, losses and boxes stay float32. Products of float32
    are float32 on CPUs and TPUs (six passes of the matrix units there), TF32 on GPUs as is their
    default; JAX_DEFAULT_MATMUL_PRECISION overrules that."""
    remat: Literal["none", "blocks"] = "none"
    """What the backward pass recomputes instead of keeping: nothing, or the backbone's blocks."""

    def check(self) -> None:
        """Distributions need points; fields of ResNets belong to ResNets."""
        if self.side_bins and self.regression != "point":
            raise UserError(
                f"config.model.side_bins={self.side_bins} with config.model.regression="
                f'{self.regression!r}: distributions are of distances. Set regression="point", or '
                "side_bins=0."
            )
        if self.distribution_quality and not self.side_bins:
            raise UserError(
                "config.model.distribution_quality=True with config.model.side_bins=0: there are "
                "no distributions. Set side_bins, 16 in the paper, or leave both out."
            )
        if self.star_refinement and (self.regression != "point" or self.side_bins):
            raise UserError(
                f"config.model.star_refinement=True with config.model.regression="
                f"{self.regression!r}, side_bins={self.side_bins}: what it refines are plain "
                'distances. Set regression="point" and side_bins=0.'
            )
        if self.backbone.startswith("res"):
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("flavour", "backbone_norm", "stem_channels", "dcn_stages"):
            if getattr(self, name) != defaults[name]:
                raise UserError(
                    f"config.model.{name}={getattr(self, name)!r} with config.model.backbone="
                    f"{self.backbone!r}: only ResNets and ResNeXts have it. Leave it at its "
                    f"default, {defaults[name]!r}, or choose one of them."
                )
