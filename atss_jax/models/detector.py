"""The whole network: normalised images to raw predictions, and what goes with it.

Variables are `{"params": ..., "batch_stats": ...}`. "params" is what an optimizer sees; frozen
batch norms keep their constants in "batch_stats", where they are saved and converted but never
trained. Which of the parameters are frozen says `frozen_mask`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atss_jax.geometry import pyramid
from atss_jax.models.fpn import FeaturePyramid
from atss_jax.models.head import Head
from atss_jax.models.layers import NORMS
from atss_jax.models.resnet import ResNet
from atss_jax.structures import HeadOutputs
from atss_jax.typing import AnyArray, Array, Bool, Float, Int, UInt8

CHOICES = {
    "flavour": ("torchvision", "msra"),
    "backbone_norm": tuple(NORMS),
    "p6_from": ("p5", "c5"),
    "head_norm": ("group_norm", "none"),
    "centerness": ("box", "cls", "none"),
    "regression": ("box", "point"),
    "point_activation": ("relu", "exp"),
    "remat": ("none", "blocks"),
}
"""Allowed values of the fields of `Detector` that are words."""


class Detector(nn.Module):
    """ResNet, FPN and dense head.

    Attributes:
      num_classes: K.
      num_anchors: a, anchors per location.
      backbone: "resnet18|34|50|101|152", "resnext101_32x8d", "resnext101_64x4d".
      flavour: "torchvision" or "msra", see `ResNet`.
      backbone_norm: "frozen_bn", "batch_norm" or "group_norm".
      width: factor on the backbone's stages.
      stem_channels: channels of the stem.
      frozen_stages: see `ResNet`; it only stops gradients, the optimizer needs `frozen_mask` too.
      dcn_stages: backbone stages (2..5) with deformable convolutions.
      fpn_channels: width of P3..P7 and of the head.
      p6_from: "p5" or "c5".
      relu_before_p7: whether P7 sees relu(P6).
      head_convs: convolutions of each tower.
      head_norm: "group_norm" or "none".
      head_dcn: the last convolution of both towers is deformable.
      level_scale: a learned factor per level on the box regression.
      centerness: "box", "cls" or "none".
      regression: "box" or "point".
      point_activation: "relu" or "exp".
      class_prior: initial probability of each class.
      dtype: compute type, float32 or bfloat16; parameters and outputs are float32.
      remat: "none", or "blocks" to recompute residual blocks in the backward pass.
    """

    num_classes: int
    num_anchors: int = 1
    backbone: str = "resnet50"
    flavour: str = "torchvision"
    backbone_norm: str = "frozen_bn"
    width: float = 1.0
    stem_channels: int = 64
    frozen_stages: int = 0
    dcn_stages: tuple[int, ...] = ()
    fpn_channels: int = 256
    p6_from: str = "p5"
    relu_before_p7: bool = True
    head_convs: int = 4
    head_norm: str = "group_norm"
    head_dcn: bool = False
    level_scale: bool = True
    centerness: str = "box"
    regression: str = "box"
    point_activation: str = "relu"
    class_prior: float = 0.01
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self):
        """Builds the three parts."""
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"model.{field}={getattr(self, field)!r}: use one of {', '.join(allowed)}."
                )
        if self.regression == "point" and self.num_anchors != 1:
            raise ValueError(
                f'regression="point" with {self.num_anchors} anchors per location: a point has '
                'one box. Use one anchor, or regression="box".'
            )
        self.body = ResNet(
            name_of=self.backbone,
            flavour=self.flavour,
            norm=self.backbone_norm,
            width=self.width,
            stem_channels=self.stem_channels,
            frozen_stages=self.frozen_stages,
            dcn_stages=self.dcn_stages,
            remat=self.remat,
            dtype=self.dtype,
            name="backbone",
        )
        self.fpn = FeaturePyramid(
            channels=self.fpn_channels,
            p6_from=self.p6_from,
            relu_before_p7=self.relu_before_p7,
            dtype=self.dtype,
            name="fpn",
        )
        self.head = Head(
            num_classes=self.num_classes,
            num_anchors=self.num_anchors,
            num_convs=self.head_convs,
            norm=self.head_norm,
            deformable=self.head_dcn,
            level_scale=self.level_scale,
            centerness=self.centerness,
            regression=self.regression,
            point_activation=self.point_activation,
            class_prior=self.class_prior,
            dtype=self.dtype,
            name="head",
        )

    def __call__(
        self, images: Float[Array, "B H W 3"], image_size: Int[Array, "B 2"], *, train: bool = False
    ) -> HeadOutputs:
        """Raw predictions.

        Args:
          images: normalised (`normalize_images`), 0 in the padding; sides multiples of 32.
          image_size: (h, w) of each image's content, px.
          train: batch norm uses batch statistics (and then updates "batch_stats").
        """
        _, levels, masks = self.features(images, image_size, train=train)
        return self.head(levels, masks)

    def features(
        self, images: Float[Array, "B H W 3"], image_size: Int[Array, "B 2"], *, train: bool = False
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """(C2..C5, P3..P7, masks of P3..P7)."""
        shape = (images.shape[1], images.shape[2])
        if shape[0] % pyramid.PAD_MULTIPLE or shape[1] % pyramid.PAD_MULTIPLE:
            raise ValueError(
                f"images of {shape} px: both sides must be multiples of {pyramid.PAD_MULTIPLE}. "
                "Pad them."
            )
        body_masks, level_masks = own_masks(shape, image_size)
        stages = self.body(images.astype(self.dtype), body_masks, train=train)
        return stages, self.fpn(stages[1:], level_masks), level_masks


def own_masks(
    shape: tuple[int, int], image_size: Int[Array, "B 2"]
) -> tuple[tuple[Bool[Array, "B _h _w"], ...], tuple[Bool[Array, "B _h _w"], ...]]:
    """Own cells of every map: (strides 2, 4, 8, 16, 32 of the backbone; P3..P7)."""
    heights, widths = image_size[:, 0], image_size[:, 1]
    padded_h, padded_w = pyramid.padded_side(heights), pyramid.padded_side(widths)
    body = tuple(
        pyramid.inside_mask((shape[0] >> n, shape[1] >> n), padded_h >> n, padded_w >> n)
        for n in range(1, 6)  # strides 2, 4, 8, 16, 32
    )
    sides = zip(pyramid.level_sides(heights), pyramid.level_sides(widths), strict=True)
    levels = tuple(
        pyramid.inside_mask(level_shape, h, w)
        for level_shape, (h, w) in zip(pyramid.level_shapes(shape), sides, strict=True)
    )
    return body, levels


def normalize_images(
    images: UInt8[AnyArray, "B H W 3"],
    image_size: Int[AnyArray, "B 2"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    channel_order: str = "rgb",
    dtype: Any = jnp.float32,
) -> Float[Array, "B H W 3"]:
    """(image - mean) / std, and then 0 in the padding (an average image, not a black one).

    Args:
      images: RGB, 0..255.
      image_size: (h, w) of each image's content, px.
      mean: of the three channels, in the order of `channel_order`.
      std: divisor of the three channels, likewise.
      channel_order: order of the channels that the network was trained on, "rgb" or "bgr".
      dtype: of the result; the arithmetic is float32 at least.

    Raises:
      ValueError: unknown channel order.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f'channel_order={channel_order!r}: use "rgb" or "bgr".')
    pixels = jnp.asarray(images)
    if channel_order == "bgr":
        pixels = pixels[..., ::-1]
    pixels = (pixels.astype(jnp.float32) - jnp.array(mean, jnp.float32)) / jnp.array(
        std, jnp.float32
    )
    size = jnp.asarray(image_size)
    inside = pyramid.inside_mask((pixels.shape[1], pixels.shape[2]), size[:, 0], size[:, 1])
    return jnp.where(inside[..., None], pixels, 0).astype(dtype)


def is_frozen(path: tuple[str, ...], *, frozen_stages: int) -> bool:
    """Whether a parameter belongs to the frozen part of the backbone.

    Args:
      path: names from the root of "params" to the array.
      frozen_stages: 0 none, 1 the stem, 2 also C2 (official and default for imported weights), up
        to 5.

    >>> is_frozen(("backbone", "layer1_0", "conv1", "kernel"), frozen_stages=2)
    True
    """
    if path[0] != "backbone":
        return False
    stage = 1 if path[1].startswith("stem") else int(path[1][len("layer")]) + 1
    return stage <= frozen_stages


def frozen_mask(params: Any, *, frozen_stages: int) -> Any:
    """Tree of bool like `params`: True for the parameters that are not trained."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: is_frozen(tuple(k.key for k in path), frozen_stages=frozen_stages), params
    )
