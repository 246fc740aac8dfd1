"""Dynamic head: attention over levels, places and channels, before the towers of the head.

Dai et al., Dynamic Head: Unifying Object Detection Heads with Attentions, CVPR 2021
(arXiv 2106.08322). Shared by all levels, as the rest of the head.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from atss_jax.models import layers
from atss_jax.models.deform_conv import deform_conv
from atss_jax.typing import Array, Bool, Float

NORMAL = nn.initializers.normal(0.01)

SQUEEZE = 4
"""Channels over the hidden channels of the channel attention."""


def own_mean(x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"] | None) -> Float[Array, "B C"]:
    """Mean over an image's own cells, summed and counted in float32 at least.

    Args:
      x: zero outside the own cells.
      mask: own cells; None for all.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if mask is None:
        return jnp.mean(x, axis=(1, 2), dtype=wide).astype(x.dtype)
    count = jnp.sum(mask, axis=(1, 2), dtype=wide)[:, None]
    return (jnp.sum(x, axis=(1, 2), dtype=wide) / count).astype(x.dtype)


def resize_own(
    x: Float[Array, "B h w C"],
    mask: Bool[Array, "B h w"] | None,
    shape: tuple[int, int],
    out_mask: Bool[Array, "B h2 w2"] | None,
) -> Float[Array, "B h2 w2 C"]:
    """Bilinear resizing of the own cells onto other own cells, corner to corner.

    Equal to PyTorch's `align_corners=True` of the own cells alone, so that an image's outputs do
    not depend on its padding.

    Args:
      x: zero outside the own cells.
      mask: own cells of `x`; None for all.
      shape: (h2, w2).
      out_mask: own cells of the result; None for all.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)  # of places, which bfloat16 cannot tell apart

    def weights(axis: int) -> Array:
        """[B or 1, out, in]."""
        sides = []
        for cells, full in ((mask, x.shape[1 + axis]), (out_mask, shape[axis])):
            if cells is None:
                sides.append(jnp.full((1, 1), full, wide))
            else:
                sides.append(jnp.sum(jnp.any(cells, axis=2 - axis), axis=-1, dtype=wide)[:, None])
        place = jnp.arange(shape[axis], dtype=wide) * (sides[0] - 1) / jnp.maximum(sides[1] - 1, 1)
        distance = jnp.abs(place[..., None] - jnp.arange(x.shape[1 + axis], dtype=wide))
        return jnp.maximum(1 - distance, 0).astype(x.dtype)

    rows, columns = (jnp.broadcast_to(w, (x.shape[0], *w.shape[1:])) for w in map(weights, (0, 1)))
    return layers.zero_outside(jnp.einsum("byi,bxj,bijc->byxc", rows, columns, x), out_mask)


def hard_sigmoid(x: Array) -> Array:
    """0 up to -3, 1 from 3 on, linear between."""
    return jnp.clip((x + 3) / 6, 0, 1)


class DynamicRelu(nn.Module):
    """Channel attention: max(a1 x + b1, a2 x + b2) with coefficients from the own cells' mean."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], mask: Bool[Array, "B h w"] | None) -> Array:
        """The map, any number outside the own cells."""
        channels = x.shape[-1]
        hidden = nn.Dense(max(channels // SQUEEZE, 1), dtype=self.dtype, name="hidden")
        raw = nn.Dense(4 * channels, dtype=self.dtype, name="coefficients")(
            nn.relu(hidden(own_mean(x, mask)))
        )
        a1, b1, a2, b2 = jnp.split((hard_sigmoid(raw) - 0.5)[:, None, None], 4, axis=-1)
        return jnp.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


class DynamicBlock(nn.Module):
    """One block: each level from itself and its neighbours, sampled at its own offsets."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "B _h _w C"], ...],
        masks: tuple[Bool[Array, "B _h _w"] | None, ...],
    ) -> tuple[Float[Array, "B _h _w C"], ...]:
        """Maps of the same shapes, zero outside the own cells.

        Args:
          features: of all levels, each half the size of the one before, zero outside.
          masks: own cells of each.
        """
        channels = features[0].shape[-1]
        zeros = nn.initializers.zeros_init()
        offset_conv = layers.Conv(27, kernel_init=zeros, dtype=self.dtype, name="offset")
        level_score = nn.Dense(1, kernel_init=NORMAL, dtype=self.dtype, name="level_score")
        activation = DynamicRelu(self.dtype, name="activation")
        kernels, norms = {}, {}
        for name in ("own", "finer", "coarser"):
            kernels[name] = self.param(f"{name}_kernel", NORMAL, (3, 3, channels, channels))
            norms[name] = layers.GroupNorm(dtype=self.dtype, name=f"{name}_norm")
        maps = []
        for level, (x, mask) in enumerate(zip(features, masks, strict=True)):
            predicted = offset_conv(x)
            places, factors = predicted[..., :18], nn.sigmoid(predicted[..., 18:])
            sources = [("own", x, 1)]
            if level > 0:
                sources.append(("finer", features[level - 1], 2))
            if level + 1 < len(features):
                shape = (x.shape[1], x.shape[2])
                above = resize_own(features[level + 1], masks[level + 1], shape, mask)
                sources.append(("coarser", above, 1))
            total = jnp.zeros((), self.dtype)
            for name, source, stride in sources:
                kernel = kernels[name].astype(self.dtype)
                y = deform_conv(source.astype(self.dtype), kernel, places, factors, stride=stride)
                y = layers.zero_outside(norms[name](y, mask), mask)
                score = hard_sigmoid(nn.relu(level_score(own_mean(y, mask))))
                total = total + y * score[:, None, None]
            mixed = activation(total / len(sources), mask)
            maps.append(layers.zero_outside(mixed, mask))
        return tuple(maps)
