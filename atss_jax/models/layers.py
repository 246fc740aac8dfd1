"""Convolutions, normalisation layers, pooling and resizing that all networks here are made of.

Maps are `[B, h, w, C]`. Several layers take the mask of an image's own cells (see
`pyramid.inside_mask`): what lies outside must not influence what lies inside, so that an image's
outputs do not depend on the bucket it was padded to.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.models.convolutions import convolution
from atss_jax.typing import Array, Bool, Float

Initializer = Callable[..., Any]

KAIMING_UNIFORM = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""U(-sqrt(3 / fan_in), +): `kaiming_uniform_(a=1)`, the official initialisation of the FPN."""

HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / fan_out), torchvision's initialisation of ResNets."""

GROUPS = 32
"""Groups of GroupNorm (Wu and He 2018); fewer where 32 does not divide the channels."""

NORM_EPSILON = 1e-5
"""Added to variances by batch and group normalisation, as in PyTorch."""

BATCH_NORM_MOMENTUM = 0.9
"""Share of the old value in running statistics (PyTorch's momentum 0.1)."""


def zero_outside(x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"] | None):
    """`x` with 0 in the cells outside `mask`; `x` itself where there is no mask."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


class Conv(nn.Module):
    """A convolution with zero padding, parameters `kernel` (HWIO) and `bias`.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: in cells.
      groups: of channels.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias.
      dtype: compute type; parameters stay float32.
    """

    features: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = HE_NORMAL
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = jnp.float32

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 N"]:
        """The convolved map."""
        return self.on_levels((x,))[0]

    @nn.compact
    def on_levels(
        self, maps: Sequence[Float[Array, "B _h _w C"]]
    ) -> tuple[Float[Array, "B _h2 _w2 N"], ...]:
        """Several maps, each convolved with the same parameters.

        Parameters are brought to the compute type once for all maps, so that their gradients are
        added up in it: compilers then sum over the devices once, and not once for each level.
        """
        shape = (self.size, self.size, maps[0].shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        convolved = tuple(
            convolution(x.astype(self.dtype), kernel, stride=self.stride, groups=self.groups)
            for x in maps
        )
        if not self.use_bias:
            return convolved
        bias = self.param("bias", self.bias_init, (self.features,)).astype(self.dtype)
        return tuple(x + bias for x in convolved)


class FrozenBatchNorm(nn.Module):
    """y = x * scale + bias with constants, in the collection "batch_stats": saved, never trained.

    The four arrays of a trained batch norm are folded into two when weights are imported, each
    library's epsilon included.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """The scaled map."""
        shape = (x.shape[-1],)
        scale = self.variable("batch_stats", "scale", jnp.ones, shape).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape).value
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


def _own_sums(x: Array, mask: Array | None, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """(sum, sum of squares, number of cells) over the own cells, in at least float32."""
    wide = zero_outside(x, mask).astype(jnp.promote_types(x.dtype, jnp.float32))
    if mask is None:
        count = jnp.asarray(math.prod(x.shape[a] for a in axes), wide.dtype)
    else:
        count = jnp.sum(mask, axis=axes, dtype=wide.dtype)
    return jnp.sum(wide, axis=axes), jnp.sum(jnp.square(wide), axis=axes), count


class BatchNorm(nn.Module):
    """Batch normalisation over the own cells of all images of the global batch.

    Under `jit` the batch is the global one, so statistics are synchronised over devices by
    construction. Running mean and variance live in "batch_stats".
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """The normalised map; batch statistics if `train`, else running ones."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if train:
            total, squares, count = _own_sums(x, mask, (0, 1, 2))
            mean = total / count
            variance = jnp.maximum(squares / count - jnp.square(mean), 0)
            if not self.is_initializing():
                # The running variance is unbiased, as PyTorch's.
                unbiased = variance * count / jnp.maximum(count - 1, 1)
                for running, value in ((running_mean, mean), (running_var, unbiased)):
                    running.value += (1 - BATCH_NORM_MOMENTUM) * (value - running.value)
        else:
            mean, variance = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(variance + NORM_EPSILON)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over an image's own cells; equal to `flax.linen.GroupNorm` with a mask.

    Two sums over the map, then one multiply-add: on the CPU several times faster than Flax's.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """The normalised map (not zero outside the own cells)."""
        channels = x.shape[-1]
        groups = math.gcd(GROUPS, channels)
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        total, squares, count = _own_sums(x, mask, (1, 2))  # [B, C], [B, C], [B] or []
        count = jnp.broadcast_to(count, x.shape[:1])[:, None] * (channels // groups)

        def group_mean(sums: Array) -> Array:
            grouped = sums.reshape(-1, groups, channels // groups).sum(-1) / count
            return jnp.repeat(grouped, channels // groups, axis=-1)  # [B, C]

        mean = group_mean(total)
        variance = jnp.maximum(group_mean(squares) - jnp.square(mean), 0)
        factor = scale * lax.rsqrt(variance + NORM_EPSILON)
        shift = bias - mean * factor
        return x * factor[:, None, None].astype(self.dtype) + shift[:, None, None].astype(
            self.dtype
        )


NORMS: dict[str, Callable[..., Any]] = {
    "frozen_bn": FrozenBatchNorm,
    "batch_norm": BatchNorm,
    "group_norm": GroupNorm,
}


def max_pool(x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
    """3x3 max pooling with stride 2 and padding 1 of a map that is nowhere negative.

    Written as maxima of slices along rows, then columns: the backward pass of `lax.reduce_window`
    (select-and-scatter) is slow on CPUs. Zero padding is right because the input follows a ReLU.
    """
    for axis in (1, 2):
        size = (x.shape[axis] - 1) // 2 + 1
        pads = [(0, 0)] * 4
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads)
        first, second, third = (
            lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis=axis) for i in range(3)
        )
        x = _larger(_larger(first, second), third)
    return x


def _larger(a: Array, b: Array) -> Array:
    """Maximum whose gradient goes to `a` at ties, as PyTorch's pooling."""
    return jnp.where(a >= b, a, b)


def upsample(x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
    """Nearest-neighbour doubling, as a broadcast."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
