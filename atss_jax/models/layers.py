"""Convolutions, normalisation layers, pooling and resizing that all networks here are made of.

Maps are `[B, h, w, C]`. Several layers take the mask of an image's own cells (see
`pyramid.inside_mask`): what lies outside must not influence what lies inside, so that an image's
outputs do not depend on the bucket it was padded to.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

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


MIN_CELLS_FOR_TAP_PRODUCTS = 512
MIN_CHANNELS_FOR_TAP_PRODUCTS = 64
"""Cells per batch, and channels, from which `_kernel_gradient_by_products` is faster; measured."""


def zero_outside(x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"] | None):
    """`x` with 0 in the cells outside `mask`; `x` itself where there is no mask."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def _convolution(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """A convolution whose gradients suit the platform that the program is lowered for.

    Chosen at lowering, not by the host's backend: a program compiled ahead of time for TPUs on a
    machine without one, or exported for several platforms, gets each platform's form.
    """
    return _convolution(x, kernel, stride, 1)


def _dense_convolution_forward(
    x: Array, kernel: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel, stride, 1), (x, kernel)


def _dense_convolution_backward(
    stride: int, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *saved,
        cotangent,
        cpu=functools.partial(_cpu_gradients, stride),
        default=functools.partial(_plain_gradients, stride),
    )


def _plain_gradients(stride: int, x: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    by_x = jax.linear_transpose(lambda x: _convolution(x, kernel, stride, 1), x)
    by_kernel = jax.linear_transpose(lambda kernel: _convolution(x, kernel, stride, 1), kernel)
    return by_x(cotangent)[0], by_kernel(cotangent)[0]


def _cpu_gradients(stride: int, x: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    """Both gradients in the form that XLA's CPU backend is fast at.

    Automatic differentiation writes them as convolutions with permuted dimensions. The backend has
    fast kernels for NHWC with HWIO only; it rewrites others, but not inside loops (jax-ml/jax
    issue 12868), where they take ten times as long. So they are written as NHWC here.
    """
    pad = kernel.shape[0] // 2
    sides = zip(x.shape[1:3], cotangent.shape[1:3], strict=True)
    rest = [side - 1 - (out_side - 1) * stride for side, out_side in sides]  # after the last centre
    input_gradient = _nhwc_convolution(
        cotangent,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        padding=[(pad, pad + cells) for cells in rest],
        lhs_dilation=(stride, stride),
    )
    num_cells = x.shape[0] * x.shape[1] * x.shape[2]
    num_channels = min(x.shape[3], kernel.shape[3])
    is_large = (
        num_cells >= MIN_CELLS_FOR_TAP_PRODUCTS and num_channels >= MIN_CHANNELS_FOR_TAP_PRODUCTS
    )
    if is_large and pad == 1 and stride == 1:
        return input_gradient, _kernel_gradient_by_products(x, cotangent)
    kernel_gradient = _nhwc_convolution(  # channels as batch, images as channels
        x.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        padding=[(pad, pad - cells) for cells in rest],
        rhs_dilation=(stride, stride),
    )
    return input_gradient, kernel_gradient.transpose(1, 2, 0, 3)


def _nhwc_convolution(x: Array, kernel: Array, **keywords: Any) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"), **keywords
    )


def _kernel_gradient_by_products(x: Array, cotangent: Array) -> Array:
    """The kernel gradient of a 3x3 convolution of stride 1 as nine matrix products.

    For 8 maps of 32x40x256, XLA's CPU backend needs 0.77 s for the kernel gradient as the
    convolution that it is, and 0.25 s for these products (CPU time, float32, jax 0.10).
    """
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def tap(index: Array) -> Array:  # the loop bounds memory to one shifted copy of the map
        shifted = lax.dynamic_slice(padded, (0, index // 3, index % 3, 0), x.shape)
        return lax.dot_general(shifted, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())))

    return lax.map(tap, jnp.arange(9)).reshape(3, 3, x.shape[3], cotangent.shape[3])


_dense_convolution.defvjp(_dense_convolution_forward, _dense_convolution_backward)


def convolution(
    x: Float[Array, "B h w C"], kernel: Float[Array, "k k c N"], *, stride: int = 1, groups: int = 1
) -> Float[Array, "B h2 w2 N"]:
    """2-D convolution with zero padding k // 2 on all sides.

    1x1 kernels are a matrix product: XLA's CPU backend is slow in the backward pass of 1x1
    convolutions, and accelerators compile both to the same. In programs for CPUs, gradients are
    written in the form that their backend is fast at.

    Args:
      x: input map.
      kernel: HWIO, square and of odd size; c = C / groups.
      stride: in cells.
      groups: of channels.
    """
    size = kernel.shape[0]
    if size == 1 and groups == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if groups == 1:
        return _dense_convolution(x, kernel, stride)
    return _convolution(x, kernel, stride, groups)


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
