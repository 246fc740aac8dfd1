"""What the rest of the package knows of a backbone: strides, stages, names of parameters."""

import abc
import re
from collections.abc import Mapping
from typing import ClassVar

from flax import linen as nn

from atss_jax.typing import Array, Bool, Float

Mask = Bool[Array, "B _h _w"] | None
"""The own cells of a map (see `pyramid.inside_mask`), or None for all."""

Masks = Mapping[int, Bool[Array, "B _h _w"]]
"""Own cells of the maps of stride 2, 4, 8, 16 and 32, by stride; an absent one is None."""

STEM = 1
"""Number of the stem among the stages; the stage of Cn has the number n."""


class Backbone(nn.Module, abc.ABC):
    """Base of the backbones.

    A subclass names its submodules and parameters `stem...` in the stem and `layer1...` to
    `layer4...` in the stages of C2 to C5, so that `stage_of` can tell them apart.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    """Of the maps that a call returns, px; the FPN needs 8, 16 and 32 among them."""

    @abc.abstractmethod
    def __call__(
        self, images: Float[Array, "B H W 3"], masks: Masks | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "B _h _w _C"], ...]:
        """C2, C3, C4, C5; what lies outside the own cells is not masked, and means nothing.

        Args:
          images: normalised, 0 in the padding; sides multiples of 32.
          masks: own cells of the maps inside, None for all.
          train: batch norm uses batch statistics.
        """

    @staticmethod
    def stage_of(path: tuple[str, ...]) -> int:
        """Number of the stage that a parameter belongs to: 1 is the stem, n the stage of Cn.

        Args:
          path: names from the backbone's parameters to the array.

        Raises:
          ValueError: the name does not say.

        >>> Backbone.stage_of(("layer1_0", "conv1", "kernel"))
        2
        """
        match = re.match(r"(stem)|layer([1-4])", path[0])
        if match is None:
            raise ValueError(f'{"/".join(path)}: the name starts with neither "stem" nor "layerN".')
        return STEM if match[1] else int(match[2]) + 1
