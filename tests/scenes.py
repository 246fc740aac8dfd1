"""Random objects for tests of assigners."""

import jax.numpy as jnp
import numpy as np

from atss_jax.structures import GroundTruth


def random_boxes(rng, count, height, width, *, whole=True):
    """Boxes from tiny to image-filling, some twice, some at the border.

    `whole` ones have whole px: distances and their ties are then exact in float32.
    """
    low = rng.uniform(0, 1, (count, 2)) * (width - 1, height - 1)
    sides = 2.0 ** rng.uniform(0, np.log2(max(height, width)), (count, 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    if whole:
        boxes = np.round(boxes)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes = np.minimum(boxes, (width, height, width, height))
    boxes[:, :2] = np.minimum(boxes[:, :2], boxes[:, 2:] - 1)
    if rng.random() < 0.3:
        boxes[-1] = boxes[0]
    return boxes.astype(np.float32)


def ground_truth(boxes, num_slots):
    """The objects in the first slots; padding holds NaN, which must not matter."""
    padded = np.full((num_slots, 4), np.nan, np.float32)
    padded[: len(boxes)] = boxes
    labels = np.arange(num_slots, dtype=np.int32) % 7
    return GroundTruth(jnp.array(padded), jnp.array(labels), jnp.arange(num_slots) < len(boxes))


def stack(items):
    """Bundles of arrays, stacked along a new first axis."""
    return type(items[0])(*(jnp.stack(fields) for fields in zip(*items, strict=True)))
