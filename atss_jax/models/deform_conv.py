"""Modulated deformable convolution (DCNv2).

Zhu et al. 2019. Each tap of a 3x3 kernel reads its input at a learned place, bilinearly, and
scales it by a learned mask. Shapes are static: all samples are fetched by one batched gather per
neighbour, of which there are four, then multiplied by the kernel in one matrix product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atss_jax.models import layers
from atss_jax.typing import Array, Float


def deform_conv(
    x: Float[Array, "B h w C"],
    kernel: Float[Array, "k l c N"],
    offset: Float[Array, "B h2 w2 _"],
    mask: Float[Array, "B h2 w2 _"] | None,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "B h2 w2 N"]:
    """Modulated deformable convolution; differentiable in all arguments.

    Args:
      x: input map. It is zero outside: a sample between the last cell and the next one outside
        has the last cell's bilinear share.
      kernel: HWIO.
      offset: (dy, dx) of each tap, in cells: `2 * D * k * l` channels, ordered by offset group,
        then tap (row by row), then dy before dx. Offset group d moves input channels
        [d * C / D, (d + 1) * C / D).
      mask: factor of each sample, `D * k * l` channels in the same order, used as given; None
        for all ones (DCNv1).
      stride: in cells.
      padding: in cells.
      dilation: in cells.
      groups: of channels.

    Returns:
      The convolved map.
    """
    batch, _, _, channels = x.shape
    rows, columns, _, features = kernel.shape
    out_h, out_w = offset.shape[1:3]
    taps = rows * columns
    offset = offset.reshape(batch, out_h, out_w, -1, taps, 2)  # [B, h2, w2, D, taps, 2]
    offset_groups = offset.shape[3]
    wide = jnp.promote_types(offset.dtype, jnp.float32)
    tap_y, tap_x = jnp.divmod(jnp.arange(taps), columns)
    y = (jnp.arange(out_h) * stride - padding)[:, None, None, None] + tap_y * dilation
    x_place = (jnp.arange(out_w) * stride - padding)[None, :, None, None] + tap_x * dilation
    place_y = y.astype(wide) + offset[..., 0].astype(wide)
    place_x = x_place.astype(wide) + offset[..., 1].astype(wide)
    samples = _bilinear(x, place_y, place_x)  # [B, h2, w2, D, taps, C / D]
    if mask is not None:
        samples = samples * mask.reshape(batch, out_h, out_w, offset_groups, taps, 1)
    samples = jnp.moveaxis(samples, 3, 4).reshape(batch, out_h, out_w, taps, groups, -1)
    kernel = kernel.reshape(taps, channels // groups, groups, features // groups)
    if groups == 1:
        return samples.reshape(batch, out_h, out_w, -1) @ kernel.reshape(-1, features)
    out = jnp.einsum("bhwtgc,tcgn->bhwgn", samples, kernel)
    return out.reshape(batch, out_h, out_w, features)


def _bilinear(x: Array, place_y: Array, place_x: Array) -> Array:
    """Samples of `x` [B, h, w, C] at fractional cells [B, h2, w2, D, taps], zero outside.

    Offset group d reads the d-th share of the channels: [B, h2, w2, D, taps, C / D].
    """
    batch, height, width, channels = x.shape
    groups = place_y.shape[3]
    flat = x.reshape(batch, height * width, groups, channels // groups)
    # A sample that lies a cell or more outside is zero at any distance. Clipping the distance
    # changes none of them, and keeps the conversion to integers from overflowing.
    place_y = jnp.clip(place_y, -2, height + 1)
    place_x = jnp.clip(place_x, -2, width + 1)
    floor_y, floor_x = jnp.floor(place_y), jnp.floor(place_x)
    part_y, part_x = place_y - floor_y, place_x - floor_x
    floor_y, floor_x = floor_y.astype(jnp.int32), floor_x.astype(jnp.int32)

    @jax.vmap
    def take(flat: Array, index: Array) -> Array:  # [h * w, D, C / D], [h2, w2, D, taps]
        return flat[index, jnp.arange(groups)[:, None]]

    total = None
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = floor_y + dy, floor_x + dx
            weight = (part_y if dy else 1 - part_y) * (part_x if dx else 1 - part_x)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = jnp.where(inside, weight, 0).astype(x.dtype)
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            part = take(flat, index) * weight[..., None]
            total = part if total is None else total + part
    return total


class DeformConv(nn.Module):
    """A 3x3 modulated deformable convolution with the convolution that predicts its offsets.

    One offset convolution gives 27 channels: 18 offsets, then 9 masks before the sigmoid.
    Parameters: `kernel`, `bias`, and those of the submodule `offset`.

    Attributes:
      features: output channels.
      stride: in cells.
      groups: of channels.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the main kernel.
      offset_init: initialiser of the offset convolution's kernel.
      dtype: compute type, in which the offsets are predicted too; sampling places are float32 at
        least, and the bilinear shares computed from them are rounded to the features' type.
    """

    features: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: layers.Initializer = layers.KAIMING_UNIFORM
    offset_init: layers.Initializer = layers.KAIMING_UNIFORM
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 N"]:
        """The convolved map."""
        x = x.astype(self.dtype)
        kernel = self.param(
            "kernel", self.kernel_init, (3, 3, x.shape[-1] // self.groups, self.features)
        )
        predicted = layers.Conv(
            27, stride=self.stride, kernel_init=self.offset_init, dtype=self.dtype, name="offset"
        )(x)
        x = deform_conv(
            x,
            kernel.astype(self.dtype),
            predicted[..., :18],
            nn.sigmoid(predicted[..., 18:]),
            stride=self.stride,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x = x + bias.astype(self.dtype)
        return x
