"""Which object an anchor belongs to when several claim it."""

import jax.numpy as jnp

from atss_jax.typing import Array, Bool, Float, Int


def highest_iou_wins(
    anchor_index: Int[Array, "N G"],
    iou: Float[Array, "N G"],
    is_claim: Bool[Array, "N G"],
    num_anchors: int,
) -> tuple[Int[Array, " A"], Bool[Array, " A"]]:
    """Gives each anchor to the claim of the highest IoU, to the lowest object among equals.

    Args:
      anchor_index: the anchor of each claim, N claims an object; a valid index everywhere.
      iou: of anchor and object, not negative.
      is_claim: False for slots without a claim.
      num_anchors: A.

    Returns:
      Object of each anchor (0 where nobody claims it), and whether somebody does.

    >>> index = jnp.array([[0, 0], [1, 2]])
    >>> iou = jnp.array([[0.5, 0.6], [0.7, 0.8]])
    >>> winner, is_taken = highest_iou_wins(index, iou, jnp.ones((2, 2), bool), 4)
    >>> winner.tolist(), is_taken.tolist()
    ([1, 0, 1, 0], [True, True, True, False])
    """
    target = jnp.where(is_claim, anchor_index, num_anchors)  # out of range: dropped
    best = jnp.full(num_anchors, -1, iou.dtype).at[target].max(iou, mode="drop")
    is_best = is_claim & (iou == best[anchor_index])
    order = jnp.arange(anchor_index.shape[1], dtype=jnp.int32)
    return first_wins(anchor_index, order, is_best, num_anchors)


def first_wins(
    anchor_index: Int[Array, "N G"],
    place: Int[Array, " G"],
    is_claim: Bool[Array, "N G"],
    num_anchors: int,
) -> tuple[Int[Array, " A"], Bool[Array, " A"]]:
    """Gives each anchor to the claim whose object comes first.

    Args:
      anchor_index: the anchor of each claim, N claims an object.
      place: of each object in the order; a permutation of 0..G-1.
      is_claim: False for slots without a claim.
      num_anchors: A.

    Returns:
      Place of each anchor's object (0 where nobody claims it), and whether somebody does.
    """
    num_objects = place.shape[0]
    target = jnp.where(is_claim, anchor_index, num_anchors)
    places = jnp.broadcast_to(place, target.shape)
    winner = jnp.full(num_anchors, num_objects, jnp.int32).at[target].min(places, mode="drop")
    is_taken = winner < num_objects
    return jnp.where(is_taken, winner, 0), is_taken
