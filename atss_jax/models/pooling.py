"""Max pooling after the stem, with a gradient that suits the platform a program is lowered for."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from atss_jax.typing import Array, Float


@jax.custom_vjp
def max_pool(x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C"]:
    """3x3 max pooling with stride 2 and padding 1 of a map that is nowhere negative.

    In programs for CPUs its gradient is that of maxima of slices: the one of `lax.reduce_window`
    (select-and-scatter) is slow there. They differ at ties, which after a ReLU are zeros without a
    gradient.
    """
    return _max_pool_by_window(x)


def _max_pool_by_window(x: Array) -> Array:
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def _max_pool_forward(x):
    return _max_pool_by_window(x), x


def _max_pool_backward(x, cotangent):
    def pull(pool, x, cotangent):
        return jax.vjp(pool, x)[1](cotangent)  # a tuple of one

    return lax.platform_dependent(
        x,
        cotangent,
        cpu=functools.partial(pull, _max_pool_by_slices),
        default=functools.partial(pull, _max_pool_by_window),
    )


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_pool_by_slices(x: Array) -> Array:
    """Maxima along rows, then columns. Zero padding is right because the input follows a ReLU."""
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
