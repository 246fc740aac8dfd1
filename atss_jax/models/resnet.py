"""ResNet and ResNeXt backbones: images to C2..C5.

He et al. 2016, Xie et al. 2017. Parameter names follow torchvision's closely (`layer1_0/conv1`),
so that importing weights is a renaming.
"""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.errors import UserError
from atss_jax.models import layers
from atss_jax.models.backbone import Backbone, Mask, Masks
from atss_jax.models.config import ModelConfig
from atss_jax.models.deform_conv import DeformConv
from atss_jax.typing import Array, Float

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks of the four stages; basic blocks up to 34, bottlenecks from 50 on."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the name of a backbone means.

    Attributes:
      depths: blocks of each of the four stages.
      bottleneck: bottleneck or basic blocks.
      groups: of the 3x3 convolutions.
      group_width: channels per group in the first stage, before the width factor (ResNet: 64).
    """

    depths: tuple[int, ...]
    bottleneck: bool
    groups: int
    group_width: int


def parse_name(name: str) -> Architecture:
    """The architecture of "resnet50", "resnext101_64x4d" and the like.

    Raises:
      UserError: unknown name.

    >>> parse_name("resnext101_32x8d").groups
    32
    """
    match = re.fullmatch(r"resnet(\d+)|resnext(\d+)_(\d+)x(\d+)d", name)
    depth = int(match[1] or match[2]) if match else 0
    if match is None or depth not in DEPTHS or (match[2] and depth < 50):
        known = ", ".join(f"resnet{d}" for d in DEPTHS)
        raise UserError(
            f"backbone={name!r}: use {known}, or resnextDEPTH_GROUPSxWIDTHd such as "
            "resnext101_32x8d, resnext101_64x4d."
        )
    if match[2]:
        return Architecture(DEPTHS[depth], True, int(match[3]), int(match[4]))
    return Architecture(DEPTHS[depth], depth >= 50, 1, 64)


class Block(nn.Module):
    """A residual block: basic (two 3x3) or bottleneck (1x1, 3x3, 1x1).

    Attributes:
      features: output channels.
      inner: channels inside a bottleneck.
      bottleneck: kind of block.
      stride: of the block.
      groups: of the 3x3 convolution.
      stride_in_1x1: the bottleneck's stride sits in its first 1x1 (MSRA) or in the 3x3.
      deformable: the 3x3 convolution is deformable.
      norm: key of `layers.NORMS`.
      train_norm: batch norm uses batch statistics in training.
      dtype: compute type.
    """

    features: int
    inner: int
    bottleneck: bool
    stride: int
    groups: int
    stride_in_1x1: bool
    deformable: bool
    norm: str
    train_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask_in: Mask, mask_out: Mask) -> Array:
        """The block's output, not masked.

        Args:
          x: input map, not negative.
          mask_in: own cells of `x`.
          mask_out: own cells of the output.
        """

        def conv(
            name: str, features: int, size: int, stride: int = 1, groups: int = 1
        ) -> layers.Conv:
            return layers.Conv(
                features,
                size=size,
                stride=stride,
                groups=groups,
                use_bias=False,
                dtype=self.dtype,
                name=name,
            )

        def norm(name: str, x: Array, mask: Mask) -> Array:
            return layers.NORMS[self.norm](dtype=self.dtype, name=name)(
                x, mask, train=self.train_norm
            )

        mask_first = mask_in
        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
            mask_first = mask_out if self.stride_in_1x1 else mask_in
            y = conv("conv1", self.inner, 1, first)(x)
            y = nn.relu(norm("norm1", y, mask_first))
            y = layers.zero_outside(y, mask_first)
            if self.deformable:
                y = DeformConv(
                    self.inner,
                    stride=second,
                    groups=self.groups,
                    use_bias=False,
                    dtype=self.dtype,
                    name="conv2",
                )(y)
            else:
                y = conv("conv2", self.inner, 3, second, self.groups)(y)
            y = nn.relu(norm("norm2", y, mask_out))
            y = norm("norm3", conv("conv3", self.features, 1)(y), mask_out)
        else:
            y = conv("conv1", self.features, 3, self.stride)(layers.zero_outside(x, mask_in))
            y = layers.zero_outside(nn.relu(norm("norm1", y, mask_out)), mask_out)
            y = norm("norm2", conv("conv2", self.features, 3)(y), mask_out)
        if x.shape != y.shape:
            x = conv("downsample_conv", self.features, 1, self.stride)(x)
            x = norm("downsample_norm", x, mask_out)
        return nn.relu(x + y)


class ResNet(Backbone):
    """Stem and four stages.

    Frozen stages have no gradient, and their batch norms use running statistics.

    Attributes:
      config: the recipe's fields.
      architecture: depths and kind of block; see `parse_name`.
      dtype: compute type.
    """

    config: ModelConfig
    architecture: Architecture
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], masks: Masks | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "B _h _w _C"], ...]:
        """C2, C3, C4, C5; see `Backbone`."""
        config, arch, masks = self.config, self.architecture, masks or {}
        if config.dcn_stages and not arch.bottleneck:
            raise UserError(
                f"config.model.dcn_stages={config.dcn_stages} with {config.backbone}: deformable "
                "convolutions are for bottlenecks (depth 50 and more). Use dcn_stages=()."
            )
        x = layers.Conv(
            config.stem_channels,
            size=7,
            stride=2,
            use_bias=False,
            dtype=self.dtype,
            name="stem_conv",
        )(images)
        x = layers.NORMS[config.backbone_norm](dtype=self.dtype, name="stem_norm")(
            x, masks.get(2), train=train and config.frozen_stages < 1
        )
        x = layers.max_pool(layers.zero_outside(nn.relu(x), masks.get(2)))
        if config.frozen_stages >= 1:
            x = lax.stop_gradient(x)
        block = nn.remat(Block) if config.remat == "blocks" else Block
        outputs = []
        for stage, (depth, stride) in enumerate(zip(arch.depths, self.strides, strict=True)):
            planes = int(64 * 2**stage * config.width)
            inner = int(planes * arch.group_width / 64) * arch.groups
            for i in range(depth):
                step = 2 if stage > 0 and i == 0 else 1
                x = block(
                    features=planes * (4 if arch.bottleneck else 1),
                    inner=inner,
                    bottleneck=arch.bottleneck,
                    stride=step,
                    groups=arch.groups,
                    stride_in_1x1=config.flavour == "msra" and arch.groups == 1,
                    deformable=stage + 2 in config.dcn_stages,
                    norm=config.backbone_norm,
                    train_norm=train and config.frozen_stages < stage + 2,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, masks.get(stride // step), masks.get(stride))
            if config.frozen_stages >= stage + 2:
                x = lax.stop_gradient(x)
            outputs.append(x)
        return tuple(outputs)


def make_resnet(config: ModelConfig, dtype: Any) -> ResNet:
    """The backbone of a recipe whose `backbone` is a ResNet or ResNeXt."""
    return ResNet(config, parse_name(config.backbone), dtype, name="backbone")
