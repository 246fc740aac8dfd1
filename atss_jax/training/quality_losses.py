"""Classification losses whose target is a quality in [0, 1], not reduced.

One score then says both class and quality of the box, and no centerness branch is needed.
"""

import jax
import jax.numpy as jnp
import optax

from atss_jax.geometry.boxes import at_least_float32
from atss_jax.typing import Array, Float, Int


def quality_targets(
    labels: Int[Array, "*N"], quality: Float[Array, "*N"], num_classes: int
) -> Float[Array, "*N K"]:
    """The quality at an anchor's class, 0 at all others.

    Args:
      labels: class index, -1 for background.
      quality: in [0, 1].
      num_classes: K.

    >>> quality_targets(jnp.array([1, -1]), jnp.array([0.5, 0.5]), 2).tolist()
    [[0.0, 0.5], [0.0, 0.0]]
    """
    return jnp.where(labels[..., None] == jnp.arange(num_classes), quality[..., None], 0)


def quality_focal_loss(
    logits: Float[Array, "*N K"], target: Float[Array, "*N K"], *, beta: float
) -> Float[Array, "*N K"]:
    """|target - p|^beta times the cross entropy of p = sigmoid(logits) and the target.

    Args:
      logits: class scores before the sigmoid.
      target: see `quality_targets`.
      beta: focusing exponent, at least 1 (below, the gradient is infinite where p meets the
        target); 2 in the paper.

    References:
      Li et al., Generalized Focal Loss, NeurIPS 2020 (arXiv 2006.04388), eq. 2.
    """
    logits, target = at_least_float32(logits), at_least_float32(target)
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    return jnp.abs(target - jax.nn.sigmoid(logits)) ** beta * entropy


def varifocal_loss(
    logits: Float[Array, "*N K"], target: Float[Array, "*N K"], *, alpha: float, gamma: float
) -> Float[Array, "*N K"]:
    """Cross entropy weighted by the target where that is above 0, by alpha p^gamma elsewhere.

    Args:
      logits: class scores before the sigmoid; p is their sigmoid.
      target: see `quality_targets`.
      alpha: weight of negatives; 0.75 in the paper.
      gamma: focusing exponent of negatives, 0 or at least 1; 2 in the paper.

    References:
      Zhang et al., VarifocalNet, CVPR 2021 (arXiv 2008.13367), eq. 2.
    """
    logits, target = at_least_float32(logits), at_least_float32(target)
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, target)
    negative = alpha * jax.nn.sigmoid(logits) ** gamma
    return jnp.where(target > 0, target, negative) * entropy
