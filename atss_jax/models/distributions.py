"""Distances as distributions: each side of a box is an expectation over bins 0, 1, ..., n."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.geometry.boxes import at_least_float32
from atss_jax.typing import Array, Float

TOP_K = 4
"""Probabilities of each side that tell its quality (GFLv2, Table 1)."""


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


class DistributionQuality(nn.Module):
    """How good a box is, told from the shape of its four distributions (DGQP).

    The `TOP_K` highest probabilities of each side and their mean, then two dense layers. A sharp
    distribution says that the network is sure of a side.

    Attributes:
      hidden: width between the two layers.

    References:
      Li et al., Generalized Focal Loss V2, CVPR 2021 (arXiv 2011.12885), Sec. 3.2.
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, side_logits: Float[Array, "*N 4 bins"]) -> Float[Array, "*N"]:
        """The quality before the sigmoid."""
        top, _ = lax.top_k(jax.nn.softmax(at_least_float32(side_logits)), TOP_K)
        features = jnp.concatenate([top, jnp.mean(top, axis=-1, keepdims=True)], axis=-1)
        x = features.reshape(*features.shape[:-2], -1)
        init = nn.initializers.normal(0.01)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=init, name="hidden")(x))
        return nn.Dense(1, kernel_init=init, name="quality")(x)[..., 0]


def joint_logits(first: Float[Array, "*#N"], second: Float[Array, "*#N"]) -> Float[Array, "*#N"]:
    """The logit of sigmoid(first) * sigmoid(second), exact also where that is near 0 or 1.

    p / (1 - p) = 1 / (e^-a + e^-b + e^-(a + b)). Shapes broadcast.

    >>> round(float(joint_logits(jnp.array(0.0), jnp.array(0.0))), 4)  # the logit of 1/4
    -1.0986
    """
    first, second = at_least_float32(first), at_least_float32(second)
    return -jnp.logaddexp(jnp.logaddexp(-first, -second), -first - second)
