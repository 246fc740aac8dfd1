"""Star-shaped refinement: features sampled on a predicted box say how to correct that box.

Zhang et al., VarifocalNet, CVPR 2021 (arXiv 2008.13367), Sec. 3.2 and 3.3.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.models import layers
from atss_jax.models.deform_conv import deform_conv
from atss_jax.typing import Array, Bool, Float

GRADIENT_SHARE = 0.1
"""Share of the gradient that reaches a box through its sampling places (mmdetection's value)."""


def star_offsets(distances: Float[Array, "*N 4"]) -> Float[Array, "*N 18"]:
    """Offsets (dy, dx) that move the nine taps of a 3x3 kernel onto a box.

    Its centre point stays; the others go to the corners of the box and to the points of its edges
    beside and above the centre point.

    Args:
      distances: (l, t, r, b) from the cell to the edges, in cells.

    >>> star_offsets(jnp.ones(4)).tolist() == [0.0] * 18
    True
    """
    left, top, right, bottom = (distances[..., i] for i in range(4))
    zero = jnp.zeros_like(left)
    rows, columns = (-top, zero, bottom), (-left, zero, right)
    places = [
        place
        for tap_y, row in enumerate(rows)
        for tap_x, column in enumerate(columns)
        for place in (row - (tap_y - 1), column - (tap_x - 1))
    ]
    return jnp.stack(places, axis=-1)


class StarConv(nn.Module):
    """A 3x3 convolution whose taps lie on a box, then ReLU; shared by all levels.

    Attributes:
      kernel_init: initialiser of the kernel; there is no bias.
      dtype: compute type; sampling places are float32 at least.
    """

    kernel_init: layers.Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "B _h _w C"], ...],
        distances: tuple[Float[Array, "B _h _w 4"], ...],
        masks: tuple[Bool[Array, "B _h _w"] | None, ...],
    ) -> tuple[Float[Array, "B _h _w C"], ...]:
        """The convolved maps, zero outside the own cells.

        Args:
          features: of each level, zero outside the own cells.
          distances: (l, t, r, b) of the boxes, in strides.
          masks: own cells.
        """
        channels = features[0].shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, channels))
        maps = []
        for x, box, mask in zip(features, distances, masks, strict=True):
            box = GRADIENT_SHARE * box + (1 - GRADIENT_SHARE) * lax.stop_gradient(box)
            x = deform_conv(
                x.astype(self.dtype), kernel.astype(self.dtype), star_offsets(box), None
            )
            maps.append(layers.zero_outside(nn.relu(x), mask))
        return tuple(maps)
