"""Distances as distributions: each side of a box is an expectation over bins 0, 1, ..., n."""

import jax
import jax.numpy as jnp

from atss_jax.geometry.boxes import at_least_float32
from atss_jax.typing import Array, Float


def expected_distances(logits: Float[Array, "*N bins"]) -> Float[Array, "*N"]:
    """The mean of the bins' indices under the softmax of their logits.

    Args:
      logits: of the distances 0, 1, ..., bins - 1, in strides.

    References:
      Li et al., Generalized Focal Loss, NeurIPS 2020 (arXiv 2006.04388), eq. 4.

    >>> float(expected_distances(jnp.zeros(17)))
    8.0
    """
    probability = jax.nn.softmax(at_least_float32(logits))
    return jnp.sum(probability * jnp.arange(logits.shape[-1], dtype=probability.dtype), axis=-1)
