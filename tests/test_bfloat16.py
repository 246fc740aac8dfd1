"""Bfloat16 compute: what is in the program, before a backend changes it."""

import collections
import re

import jax
import numpy as np
import pytest

from atss_jax.run.selftest import network
from atss_jax.training import train_step

FLOAT32_ONLY = {"exponential", "log", "log_plus_one", "logistic", "sqrt", "rsqrt", "divide", "sine"}
"""Operations of losses, assignment, box arithmetic and normalisation."""


@pytest.fixture(scope="module")
def operations():
    """Counts of (operation, float types that occur in it) in the lowered training step."""
    settings = network.make_settings(np.float32, "bfloat16")
    variables = jax.eval_shape(lambda: network.init_variables(settings.model, network.SIZE, 0))
    state = jax.eval_shape(lambda v: train_step.init_state(settings, v), variables)
    step = jax.jit(lambda state, batch: train_step.train_step(settings, None, state, batch))
    found = collections.Counter()
    for line in step.lower(state, network.make_batch()).as_text().splitlines():
        name = re.search(r"(?:stablehlo|chlo)\.(\w+)", line)
        kinds = frozenset(re.findall(r"x(bf16|f16|f32|f64)>", line))
        if name and kinds:
            found[name[1], kinds] += 1
    return found


def test_every_product_of_the_network_is_bfloat16(operations):
    kinds = {kinds for name, kinds in operations if name == "convolution"}
    assert kinds == {frozenset({"bf16"})}
    kinds = {kinds for name, kinds in operations if name == "dot_general"}
    assert kinds == {frozenset({"bf16"})}


def test_losses_boxes_and_variances_are_float32(operations):
    kinds = {kinds for name, kinds in operations if name in FLOAT32_ONLY}
    assert kinds == {frozenset({"f32"})}
    assert {name for name, _ in operations} >= {"log_plus_one", "rsqrt", "divide"}
