"""Which object an anchor belongs to when several claim it."""

import jax.numpy as jnp

from atss_jax.typing import Array, Bool, Float, Int


def highest_iou_wins(
    anchor_index: Int[Array, "G N"],
    iou: Float[Array, "G N"],
    is_claim: Bool[Array, "G N"],
    num_anchors: int,
) -> tuple[Int[Array, " A"], Bool[Array, " A"]]:
    """Gives each anchor to the claim of the highest IoU, to the lowest object among equals.

    Args:
      anchor_index: the anchor of each claim.
      iou: of anchor and object.
      is_claim: False for slots without a claim.
      num_anchors: A.

    Returns:
      Object of each anchor (0 where nobody claims it), and whether somebody does.
    """
    num_objects = anchor_index.shape[0]
    target = jnp.where(is_claim, anchor_index, num_anchors)  # out of range: dropped
    best = jnp.full(num_anchors, -1, iou.dtype).at[target].max(iou, mode="drop")
    is_best = is_claim & (iou == best[anchor_index])
    target = jnp.where(is_best, anchor_index, num_anchors)
    objects = jnp.broadcast_to(jnp.arange(num_objects, dtype=jnp.int32)[:, None], target.shape)
    winner = jnp.full(num_anchors, num_objects, jnp.int32).at[target].min(objects, mode="drop")
    is_taken = winner < num_objects
    return jnp.where(is_taken, winner, 0), is_taken
