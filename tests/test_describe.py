"""Counts of parameters and multiply-adds of the paper's network."""

import jax
import jax.numpy as jnp

from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork, frozen_mask
from atss_jax.run.describe import count_macs, count_parameters


def test_paper_network():
    """ATSS R-50 at 800x1344: 32 M parameters, 215 GMAC within 3 %."""
    config = ModelConfig(frozen_stages=2)
    model = DetectorNetwork(config, num_classes=80)
    images = jax.ShapeDtypeStruct((1, 800, 1344, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, sizes)
    frozen = frozen_mask(variables["params"], config)
    counts = count_parameters(variables["params"], frozen, config)
    assert sum(total for total, _ in counts.values()) == 32_244_250
    assert counts["backbone/C2"] == (212_992, 212_992)
    assert counts["backbone/stem"] == (9_408, 9_408)
    assert sum(fixed for _, fixed in counts.values()) == 222_400
    macs = count_macs(jax.make_jaxpr(model.apply)(variables, images, sizes).jaxpr)
    assert abs(macs / 215e9 - 1) < 0.03


def test_loops_are_counted():
    def products(x):
        return jax.lax.map(lambda y: y @ y, x)

    jaxpr = jax.make_jaxpr(products)(jnp.zeros((5, 3, 3))).jaxpr
    assert count_macs(jaxpr) == 5 * 27
