"""ConvNeXt backbone: images to C2..C5.

Liu et al. 2022 (arXiv 2201.03545). The maps that torchvision's `convnext_tiny` computes, for its
ImageNet weights (RGB, `data.mean` and `data.std` of torchvision times 255). Stochastic depth, and
the norms that the paper's own detectors put between backbone and FPN, are not part of it.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.models import layers
from atss_jax.models.backbone import Backbone, Mask, Masks
from atss_jax.models.config import ModelConfig
from atss_jax.typing import Array, Float

DEPTHS = (3, 3, 9, 3)
"""Blocks of the four stages of ConvNeXt-T."""

WIDTHS = (96, 192, 384, 768)
"""Channels of the four stages, before the width factor."""

EPSILON = 1e-6
"""Added to variances by the layer norms, as in the paper's code."""

LAYER_SCALE = 1e-6
"""Initial factor on the branch of each block."""

KERNEL_INIT = nn.initializers.truncated_normal(0.02)
"""Of all kernels, as in the paper's code."""


class PatchConv(nn.Module):
    """A convolution whose stride is the side of its kernel: a matrix product over patches.

    Attributes:
      features: output channels.
      size: side of the kernel, and stride, in cells; the map's sides are multiples of it.
      dtype: compute type.
    """

    features: int
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 N"]:
        """The convolved map; a patch in the padding does not touch the others."""
        batch, height, width, channels = x.shape
        size = self.size
        kernel = self.param("kernel", KERNEL_INIT, (size, size, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = x.reshape(batch, height // size, size, width // size, size, channels)
        x = x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)
        kernel = kernel.reshape(-1, self.features)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def _layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Over the channels of each cell, so that no mask is needed."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm, and two layers with GELU, around a shortcut.

    Attributes:
      dtype: compute type.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Mask) -> Array:
        """The block's output, not masked.

        Args:
          x: input map.
          mask: own cells of input and output.
        """
        channels = x.shape[-1]

        def dense(name: str, features: int) -> nn.Dense:
            return nn.Dense(features, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)

        y = layers.Conv(
            channels,
            size=7,
            groups=channels,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            name="depthwise",
        )(layers.zero_outside(x, mask))
        y = dense("expand", 4 * channels)(_layer_norm(self.dtype, "norm")(y))
        y = dense("project", channels)(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(LAYER_SCALE), (channels,))
        return x + y * scale.astype(self.dtype)


class ConvNeXt(Backbone):
    """Patch stem and four stages; the layers that halve a map belong to the stage after them.

    Attributes:
      config: the recipe's fields.
      dtype: compute type.
    """

    config: ModelConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], masks: Masks | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "B _h _w _C"], ...]:
        """C2, C3, C4, C5; see `Backbone`. There is nothing that `train` changes."""
        config, masks = self.config, masks or {}
        widths = [int(width * config.width) for width in WIDTHS]
        x = PatchConv(widths[0], 4, self.dtype, name="stem_conv")(images)
        x = _layer_norm(self.dtype, "stem_norm")(x)
        if config.frozen_stages >= 1:
            x = lax.stop_gradient(x)
        block = nn.remat(Block) if config.remat == "blocks" else Block
        outputs = []
        for stage, (depth, stride) in enumerate(zip(DEPTHS, self.strides, strict=True)):
            if stage > 0:
                x = _layer_norm(self.dtype, f"layer{stage + 1}_norm")(x)
                x = PatchConv(widths[stage], 2, self.dtype, name=f"layer{stage + 1}_conv")(x)
            for i in range(depth):
                x = block(self.dtype, name=f"layer{stage + 1}_{i}")(x, masks.get(stride))
            if config.frozen_stages >= stage + 2:
                x = lax.stop_gradient(x)
            outputs.append(x)
        return tuple(outputs)


def make_convnext(config: ModelConfig, dtype: Any) -> ConvNeXt:
    """The backbone of a recipe whose `backbone` is "convnext_tiny"."""
    return ConvNeXt(config, dtype, name="backbone")
