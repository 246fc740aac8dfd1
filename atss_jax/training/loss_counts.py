"""Sums of losses over a batch, and what they are divided by."""

from typing import NamedTuple

import jax.numpy as jnp

from atss_jax.structures import Targets
from atss_jax.typing import Array, Float

MIN_CENTERNESS_SUM = 1e-6
"""Lower limit of the box loss' denominator, which is 0 without positives."""

MIN_PREDICTED_SUM = 1.0
"""The same where predictions are the weights: a fresh network has scores near 0 (GFL)."""


class Normalizers(NamedTuple):
    """What the sums of losses are divided by; all over one global batch."""

    num_positives: Float[Array, ""]
    box_weight_sum: Float[Array, ""]
    """Of the weights of positives in the box loss."""
    num_images: Float[Array, ""]
    first_weight_sum: Float[Array, ""]
    """The same for boxes before refinement; that of the others where there are none."""


class LossSums(NamedTuple):
    """Sums of the losses over anchors, before any division."""

    cls: Float[Array, ""]
    box: Float[Array, ""]
    distribution: Float[Array, ""]
    """Mean of the four sides of each anchor."""
    first_box: Float[Array, ""]
    """Of boxes before refinement."""
    centerness: Float[Array, ""]


def count_normalizers(targets: Targets) -> Normalizers:
    """The counts that losses are divided by, where they depend on targets alone.

    Args:
      targets: of a batch.
    """
    kind = targets.centerness.dtype
    centerness = jnp.sum(jnp.where(targets.is_positive, targets.centerness, 0))
    return Normalizers(
        jnp.sum(targets.is_positive, dtype=kind),
        centerness,
        jnp.asarray(targets.labels.shape[0], kind),
        centerness,
    )
