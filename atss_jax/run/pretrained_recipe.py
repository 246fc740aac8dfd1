"""One argument of a recipe for a pretrained backbone and everything that belongs to it."""

from dataclasses import replace

from atss_jax.errors import UserError
from atss_jax.models.weight_table import BACKBONES
from atss_jax.run.recipe import Recipe


def with_backbone(recipe: Recipe, name: str) -> Recipe:
    """A recipe that starts from pretrained weights.

    Sets `model.backbone`, `width`, `stem_channels`, `flavour`, `backbone_norm`, `frozen_stages`
    and `init_from`, and `data.mean`, `std` and `channel_order`. FPN, head and schedule stay.

    Args:
      recipe: the one to change.
      name: of `weight_table.BACKBONES`.

    Raises:
      UserError: another name.
    """
    if name not in BACKBONES:
        raise UserError(
            f"config argument backbone={name!r}: no pretrained weights. Use one of "
            f"{', '.join(BACKBONES)}, or set config.model.init_from and the fields that go with it."
        )
    weights = BACKBONES[name]
    return replace(
        recipe,
        model=replace(
            recipe.model,
            backbone=name,
            width=1.0,
            stem_channels=64,
            flavour=weights.flavour,
            backbone_norm=weights.backbone_norm,
            frozen_stages=weights.frozen_stages,
            init_from=weights.name,
        ),
        data=replace(
            recipe.data,
            mean=weights.mean,
            std=weights.std,
            channel_order=weights.channel_order,
        ),
    )
