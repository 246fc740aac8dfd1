"""model.dtype=float32 is float32 on TPUs, and changes nothing elsewhere."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from atss_jax.models import convolutions
from atss_jax.runtime import parallel, precision
from tests.ahead_case import report


def lowered(dtype, platform):
    """The StableHLO of a layer's gradients for a platform that need not be here."""

    def gradients(x, kernel):
        with precision.of_network(dtype, platform):
            return jax.grad(lambda *a: convolutions.convolution(*a).sum(), (0, 1))(x, kernel)

    shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((2, 8, 8, 4), (3, 3, 4, 4))]
    return jax.jit(gradients).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("dtype", "platform", "is_highest"),
    [
        (jnp.float32, "tpu", True),
        (jnp.bfloat16, "tpu", False),
        (jnp.float32, "cpu", False),
        (jnp.float32, "cuda", False),
    ],
)
def test_only_float32_for_tpus_asks_for_the_highest_precision(dtype, platform, is_highest):
    text = lowered(dtype, platform)
    assert "convolution" in text
    assert ("HIGHEST" in text) == is_highest


def test_the_users_setting_stands():
    with jax.default_matmul_precision("bfloat16"):
        assert "HIGHEST" not in lowered(jnp.float32, "tpu")


def test_platforms():
    assert parallel.platform_of(None) == "cpu"
    assert parallel.platform_of(jax.make_mesh((1,), ("data",))) == "cpu"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("part", ["head_layer", "train", "predict"])
def test_the_compiled_program_multiplies_float32(tmp_path, part):
    small = ["model.backbone=resnet18", "model.flavour=torchvision", "model.width=0.25"]
    small += ["model.fpn_channels=32", "model.head_convs=1", "eval.pre_nms_top_k=50"]
    found = report(
        tmp_path, "--topology=v5e:2x2", f"--part={part}", "--set", "model.dtype=float32", *small
    )
    types = found["convolutions"]["by_type"]
    assert set(types) == {"convolution f32 x f32 -> f32, highest precision"}
