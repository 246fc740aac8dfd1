"""Fields that a folder of data decides where the user does not. This module imports no JAX."""

from collections.abc import Collection

from atss_jax.errors import UserError

DERIVED = ("data.short_side", "data.max_long_side", "data.buckets")
"""What `data.image_size` derives."""


def left_to_data(given: Collection[str]) -> dict[str, int]:
    """Fields to choose from the data, with the value that asks for it.

    Args:
      given: fields that the user gave, as "group.field".

    Raises:
      UserError: an image size and what it derives are both given.

    >>> left_to_data(["data.buckets", "optim.num_epochs"])
    {'data.max_boxes': 0}
    """
    derived = sorted(set(DERIVED) & set(given))
    if derived and "data.image_size" in given:
        raise UserError(
            f"data.image_size and {derived[0]} are both given, and the first derives short_side, "
            "max_long_side and buckets. Leave one of them out."
        )
    sizes = () if derived or "data.train_short_sides" in given else ("data.image_size",)
    return {name: 0 for name in (*sizes, "data.max_boxes") if name not in given}
