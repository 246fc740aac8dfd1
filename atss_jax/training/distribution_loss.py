"""Distribution focal loss: the two bins beside a true distance should hold all probability."""

import jax
import jax.numpy as jnp

from atss_jax.geometry.boxes import at_least_float32
from atss_jax.typing import Array, Float

BELOW_LAST_BIN = 0.1
"""Longer distances are taken as this much below the last bin (mmdetection's value)."""


def distribution_focal_loss(
    logits: Float[Array, "*N bins"], distance: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """-(y1 - y) log p(y0) - (y - y0) log p(y1) for y0 <= y < y1 = y0 + 1; not reduced.

    Args:
      logits: of the probabilities of the distances 0, 1, ..., bins - 1.
      distance: y; limited to [0, bins - 1 - `BELOW_LAST_BIN`].

    References:
      Li et al., Generalized Focal Loss, NeurIPS 2020 (arXiv 2006.04388), eq. 6.

    >>> float(distribution_focal_loss(jnp.array([0.0, 0.0, -1e9]), jnp.array(0.25)))
    0.6931471824645996
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    last = logits.shape[-1] - 1
    distance = jnp.clip(at_least_float32(distance), 0, last - BELOW_LAST_BIN)[..., None]
    # The share of bin i falls linearly to 0 at a distance of one bin.
    share = jnp.maximum(1 - jnp.abs(jnp.arange(last + 1) - distance), 0)
    return -jnp.sum(jnp.where(share > 0, share * log_p, 0), axis=-1)
