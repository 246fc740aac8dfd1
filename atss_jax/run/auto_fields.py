"""Fields that follow from the data and the device: "auto" on the command line.

They are resolved once, before anything is built, into numbers; the workdir's config.json holds the
numbers, so that a resume, an evaluation or another machine never chooses again.
"""

import dataclasses

import numpy as np

from atss_jax.data import auto_sizes
from atss_jax.data.dataset import DetectionDataset
from atss_jax.run import auto_batch, recipe_changes
from atss_jax.run.recipe import Recipe


def is_automatic(config: Recipe) -> bool:
    """Whether a field of the recipe asks to be chosen."""
    return config.data.image_size >= 0 or recipe_changes.is_left_open(config)


def resolve(
    config: Recipe, train_set: DetectionDataset, val_set: DetectionDataset | None
) -> tuple[Recipe, list[str]]:
    """The recipe in numbers, and lines that say what was chosen.

    Args:
      config: the recipe.
      train_set: images to train on.
      val_set: images to evaluate, None for none.
    """
    data, lines = config.data, []
    sets = [train_set] if val_set is None else [train_set, val_set]
    if data.image_size >= 0:
        sides = auto_sizes.relative_sides(train_set)
        image_size = data.image_size or auto_sizes.choose_image_size(train_set.sizes, sides)
        sizes = auto_sizes.derive_sizes(np.concatenate([s.sizes for s in sets]), image_size)
        data = dataclasses.replace(data, image_size=image_size, **sizes._asdict())
        shapes = ", ".join(f"{h}x{w}" for h, w in sizes.buckets)
        lines.append(
            f"image size {image_size} px: short side {sizes.short_side}, buckets {shapes} (h x w)"
        )
        small = auto_sizes.small_side(sides, image_size)
        if small < auto_sizes.SMALL_OBJECT_PX:
            lines.append(
                f"! a tenth of the objects is smaller than {small:.0f} px there, and "
                f"{auto_sizes.SMALL_OBJECT_PX} px are wanted: give a larger data.image_size, or "
                "cut the images into tiles"
            )
    if data.max_boxes == 0:
        counts = np.concatenate([s.num_boxes for s in sets])
        data = dataclasses.replace(data, max_boxes=auto_sizes.choose_max_boxes(counts))
        lines.append(
            f"slots {data.max_boxes} per image: at most {int(counts.max())} objects in one"
        )
    config = dataclasses.replace(config, data=data)
    if data.global_batch == 0:
        choice = auto_batch.choose_batch(
            config, num_classes=len(train_set.class_names), num_images=train_set.num_records
        )
        config = auto_batch.with_batch(config, choice.global_batch)
        lines.append(str(choice))
    return config, lines
