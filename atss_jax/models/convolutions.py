"""2-D convolutions as functions, each written in the form that the platform is fast at."""

import contextlib
import contextvars
import functools
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from atss_jax.typing import Array, Float

MAX_CHANNELS_FOR_PAIRS = 4
"""Channels up to which `_convolution_of_pairs` is worth it on TPUs: the image's."""

_IS_PLAIN = contextvars.ContextVar("is_plain", default=False)


@contextlib.contextmanager
def plain() -> Generator[None, None, None]:
    """Convolutions traced inside are `lax.conv_general_dilated` on every platform.

    For converters that do not know a choice by platform, such as jax2onnx.
    """
    before = _IS_PLAIN.set(True)
    try:
        yield
    finally:
        _IS_PLAIN.reset(before)


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


def _convolution_of_pairs(x: Array, kernel: Array) -> Array:
    """A convolution of stride 2 with two columns side by side as one of twice the channels.

    TPUs hold the channels of a cell in 128 lanes, so three channels take the memory and the time of
    128. Pairs of columns are a view of the same bytes. The sums have the same terms, and zeros.
    """
    size = kernel.shape[0]
    pad = size // 2
    front = pad % 2  # columns of zeros that make the first one even
    back = (front + size) % 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (pad + front, size + back - 2 - pad), (0, 0)))
    taps = jnp.pad(kernel, ((0, 0), (front, back), (0, 0), (0, 0)))
    channels = 2 * x.shape[3]
    return lax.conv_general_dilated(
        padded.reshape(*x.shape[:2], -1, channels),
        taps.reshape(size, -1, channels, kernel.shape[3]),
        (2, 1),
        [(pad, pad), (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """A convolution whose gradients suit the platform that the program is lowered for.

    Chosen at lowering, not by the host's backend: a program compiled ahead of time for TPUs on a
    machine without one, or exported for several platforms, gets each platform's form.
    """
    if x.shape[3] > MAX_CHANNELS_FOR_PAIRS or stride != 2 or x.shape[2] % 2:
        return _convolution(x, kernel, stride, 1)
    return lax.platform_dependent(
        x,
        kernel,
        tpu=_convolution_of_pairs,
        default=lambda x, kernel: _convolution(x, kernel, stride, 1),
    )


def _dense_convolution_forward(
    x: Array, kernel: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    return _dense_convolution(x, kernel, stride), (x, kernel)


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
    if groups == 1 and not _IS_PLAIN.get():
        return _dense_convolution(x, kernel, stride)
    return _convolution(x, kernel, stride, groups)
