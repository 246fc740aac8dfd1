"""Convolutions: the gradients written for CPUs are those of automatic differentiation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from atss_jax.models import convolutions


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
    ],
)
def test_gradients(height, width, channels, size, stride):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, channels + 2)).astype(np.float32)

    @jax.jit
    def both(x, kernel, cotangent):
        ours, backward = jax.vjp(
            lambda x, k: convolutions.convolution(x, k, stride=stride), x, kernel
        )
        theirs, expected = jax.vjp(lambda x, k: plain(x, k, stride), x, kernel)
        return (ours, *backward(cotangent)), (theirs, *expected(cotangent))

    shape = jax.eval_shape(lambda: plain(x, kernel, stride)).shape
    for ours, theirs in zip(*both(x, kernel, rng.normal(size=shape, scale=0.1)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


CPU_LAYOUT = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"


def layouts_of_gradients(platform, stride):
    """Of the convolutions in both gradients, for a platform that need not be here."""

    def total(x, kernel):
        return convolutions.convolution(x, kernel, stride=stride).sum()

    arrays = (np.ones(shape, np.float32) for shape in ((2, 16, 24, 5), (3, 3, 5, 5)))
    gradients = jax.jit(jax.grad(total, (0, 1))).trace(*arrays)
    text = gradients.lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"dim_numbers = (.*?), window", text))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_on_cpus_have_one_layout(stride):
    """What XLA's CPU backend has fast kernels for, also inside of loops."""
    assert layouts_of_gradients("cpu", stride) == {CPU_LAYOUT}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_for_accelerators_have_no_gradients_of_cpus(platform):
    assert len(layouts_of_gradients(platform, 1) - {CPU_LAYOUT}) == 2


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_accelerators(stride):
    rng = np.random.default_rng(stride)
    x, kernel = rng.normal(size=(2, 9, 14, 3)), rng.normal(size=(3, 3, 3, 4))
    y, pull = jax.vjp(lambda x, kernel: plain(x, kernel, stride), x, kernel)
    cotangent = rng.normal(size=y.shape).astype(y.dtype)
    x, kernel, cotangent = (jnp.asarray(a, y.dtype) for a in (x, kernel, cotangent))
    found = convolutions._plain_gradients(stride, x, kernel, cotangent)
    for ours, theirs in zip(found, pull(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "channels", "size"),
    [(16, 24, 3, 7), (9, 14, 3, 7), (8, 10, 1, 3), (7, 6, 4, 5), (1, 2, 3, 7), (4, 8, 3, 1)],
)
def test_pairs_of_columns_give_the_same_convolution(height, width, channels, size):
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(2, height, width, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, 5)), jnp.float32)
    found = convolutions._convolution_of_pairs(x, kernel)
    np.testing.assert_allclose(found, plain(x, kernel, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "channels"), [("tpu", 6), ("cuda", 3), ("cpu", 3)])
def test_only_tpus_see_pairs_of_columns(platform, channels):
    def stem(x, kernel):
        return convolutions.convolution(x, kernel, stride=2)

    x, kernel = jnp.ones((2, 32, 64, 3)), jnp.ones((7, 7, 3, 8))
    text = jax.jit(stem).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    (line,) = (line for line in text.splitlines() if "stablehlo.convolution" in line)
    assert f"x{channels}xf32>, tensor<7x" in line
