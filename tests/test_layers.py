"""Convolutions: the gradients written for CPUs are those of automatic differentiation."""

import jax
import numpy as np
import pytest
from jax import lax

from atss_jax.models import layers


def plain(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(
    ("height", "width", "channels", "size", "stride"),
    [
        (9, 14, 5, 3, 1),
        (9, 14, 5, 3, 2),
        (16, 23, 5, 3, 2),
        (15, 22, 3, 7, 2),
        (1, 2, 4, 3, 2),
        (1, 1, 4, 3, 1),
        (5, 7, 4, 1, 2),
        (16, 24, layers.MIN_CHANNELS_FOR_TAP_PRODUCTS, 3, 1),  # nine products
    ],
)
def test_gradients(height, width, channels, size, stride):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, channels + 2)).astype(np.float32)

    @jax.jit
    def both(x, kernel, cotangent):
        ours, backward = jax.vjp(lambda x, k: layers.convolution(x, k, stride=stride), x, kernel)
        theirs, expected = jax.vjp(lambda x, k: plain(x, k, stride), x, kernel)
        return (ours, *backward(cotangent)), (theirs, *expected(cotangent))

    shape = jax.eval_shape(lambda: plain(x, kernel, stride)).shape
    for ours, theirs in zip(*both(x, kernel, rng.normal(size=shape, scale=0.1)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_on_cpus_have_one_layout(stride):
    """What XLA's CPU backend has fast kernels for, also inside of loops."""

    def total(x, kernel):
        return layers.convolution(x, kernel, stride=stride).sum()

    gradients = jax.make_jaxpr(jax.grad(total, (0, 1)))(
        np.ones((2, 9, 14, 5), np.float32), np.ones((3, 3, 5, 7), np.float32)
    )
    found = [
        equation.params["dimension_numbers"]
        for equation in gradients.jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    expected = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
    assert len(found) >= 2 and set(found) == {expected}
