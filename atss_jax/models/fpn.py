"""Feature pyramid network: C3..C5 of a backbone to P3..P7 of equal width.

Lin et al. 2017, with the two coarse levels of RetinaNet (Lin et al. 2017b).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from atss_jax.models import layers
from atss_jax.typing import Array, Bool, Float


class FeaturePyramid(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions with biases, no normalisation.

    Attributes:
      channels: width of all levels.
      p6_from: input of P6, "p5" (ATSS, FCOS) or "c5" (RetinaNet as published).
      relu_before_p7: P7 = conv(relu(P6)) (official) or conv(P6) (mmdetection).
      dtype: compute type.
    """

    channels: int = 256
    p6_from: str = "p5"
    relu_before_p7: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "B _h _w _C"], ...],
        masks: tuple[Bool[Array, "B _h _w"] | None, ...],
    ) -> tuple[Float[Array, "B _h _w C"], ...]:
        """P3..P7, zero outside the own cells.

        Args:
          features: C3, C4, C5.
          masks: own cells of P3..P7; None for all.
        """

        def conv(name: str, size: int, stride: int = 1):
            return layers.Conv(
                self.channels,
                size=size,
                stride=stride,
                kernel_init=layers.KAIMING_UNIFORM,
                dtype=self.dtype,
                name=name,
            )

        levels = []
        merged = None
        for level in (5, 4, 3):
            lateral = conv(f"lateral{level}", 1)(features[level - 3])
            merged = lateral if merged is None else lateral + layers.upsample(merged)
            merged = layers.zero_outside(merged, masks[level - 3])
            output = conv(f"output{level}", 3)(merged)
            levels.insert(0, layers.zero_outside(output, masks[level - 3]))
        source = levels[2] if self.p6_from == "p5" else layers.zero_outside(features[2], masks[2])
        p6 = layers.zero_outside(conv("p6", 3, 2)(source), masks[3])
        p7 = conv("p7", 3, 2)(nn.relu(p6) if self.relu_before_p7 else p6)
        return *levels, p6, layers.zero_outside(p7, masks[4])
