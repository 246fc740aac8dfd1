"""The whole network: normalised images to raw predictions, and what goes with it.

Variables are `{"params": ..., "batch_stats": ...}`. "params" is what an optimizer sees; frozen
batch norms keep their constants in "batch_stats", where they are saved and converted but never
trained. `frozen_mask` says which of the parameters are frozen.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atss_jax.errors import UserError
from atss_jax.geometry import pyramid
from atss_jax.models.backbone import Masks
from atss_jax.models.backbones import make_backbone
from atss_jax.models.config import ModelConfig
from atss_jax.models.fpn import FeaturePyramid
from atss_jax.models.head import Head
from atss_jax.structures import HeadOutputs
from atss_jax.typing import AnyArray, Array, Bool, Float, Int, UInt8

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Compute types by their words in a recipe."""


class DetectorNetwork(nn.Module):
    """Backbone, FPN and dense head.

    Attributes:
      config: the recipe's fields.
      num_classes: K.
      num_anchors: a, anchors per location.
      dtype: compute type, None for the recipe's; float64 where implementations are compared.
    """

    config: ModelConfig
    num_classes: int
    num_anchors: int = 1
    dtype: Any = None

    def setup(self):
        """Builds the three parts."""
        config, dtype = self.config, self.compute_dtype
        if config.regression == "point" and self.num_anchors != 1:
            raise UserError(
                f'config.model.regression="point" with {self.num_anchors} anchors per location: a '
                'point has one box. Use one anchor, or regression="box".'
            )
        self.body = make_backbone(config, dtype)
        self.fpn = FeaturePyramid(
            channels=config.fpn_channels,
            p6_from=config.p6_from,
            relu_before_p7=config.relu_before_p7,
            dtype=dtype,
            name="fpn",
        )
        self.head = Head(config, self.num_classes, self.num_anchors, dtype, name="head")

    @property
    def compute_dtype(self) -> Any:
        """Type of the maps between images and outputs."""
        return self.dtype or DTYPES[self.config.dtype]

    def __call__(
        self, images: Float[Array, "B H W 3"], image_size: Int[Array, "B 2"], *, train: bool = False
    ) -> HeadOutputs:
        """Raw predictions.

        Args:
          images: normalised (`normalize_images`), 0 in the padding; sides multiples of 32.
          image_size: (h, w) of each image's content, px.
          train: batch norm uses batch statistics (and then updates "batch_stats").
        """
        _, levels, masks = self.features(images, image_size, train=train)
        return self.head(levels, masks, train=train)

    def features(
        self, images: Float[Array, "B H W 3"], image_size: Int[Array, "B 2"], *, train: bool = False
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """(C2..C5, P3..P7, masks of P3..P7)."""
        shape = (images.shape[1], images.shape[2])
        if shape[0] % pyramid.PAD_MULTIPLE or shape[1] % pyramid.PAD_MULTIPLE:
            raise UserError(
                f"images of {shape} px: both sides must be multiples of {pyramid.PAD_MULTIPLE}. "
                "Pad them."
            )
        body_masks, level_masks = own_masks(shape, image_size)
        stages = self.body(images.astype(self.compute_dtype), body_masks, train=train)
        by_stride = dict(zip(self.body.strides, stages, strict=True))
        inputs = tuple(by_stride[stride] for stride in (8, 16, 32))
        return stages, self.fpn(inputs, level_masks), level_masks


def own_masks(
    shape: tuple[int, int], image_size: Int[Array, "B 2"]
) -> tuple[Masks, tuple[Bool[Array, "B _h _w"], ...]]:
    """Own cells of every map: (of the backbone's by stride 2, 4, 8, 16, 32; of P3..P7).

    Args:
      shape: (H, W) of the padded images, px.
      image_size: (h, w) of each image's content, px.
    """
    heights, widths = image_size[:, 0], image_size[:, 1]
    padded_h, padded_w = pyramid.padded_side(heights), pyramid.padded_side(widths)
    body = {
        2**n: pyramid.inside_mask((shape[0] >> n, shape[1] >> n), padded_h >> n, padded_w >> n)
        for n in range(1, 6)
    }
    sides = zip(pyramid.level_sides(heights), pyramid.level_sides(widths), strict=True)
    levels = tuple(
        pyramid.inside_mask(level_shape, h, w)
        for level_shape, (h, w) in zip(pyramid.level_shapes(shape), sides, strict=True)
    )
    return body, levels


def normalize_images(
    images: UInt8[AnyArray, "B H W 3"],
    image_size: Int[AnyArray, "B 2"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    channel_order: str = "rgb",
    dtype: Any = jnp.float32,
) -> Float[Array, "B H W 3"]:
    """(image - mean) / std, and then 0 in the padding (an average image, not a black one).

    Args:
      images: RGB, 0..255.
      image_size: (h, w) of each image's content, px.
      mean: of the three channels, in the order of `channel_order`.
      std: divisor of the three channels, likewise.
      channel_order: order of the channels that the network was trained on, "rgb" or "bgr".
      dtype: of the result; the arithmetic is float32 at least.

    Raises:
      ValueError: unknown channel order.
    """
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f'channel_order={channel_order!r}: use "rgb" or "bgr".')
    pixels = jnp.asarray(images)
    if channel_order == "bgr":
        pixels = pixels[..., ::-1]
    pixels = (pixels.astype(jnp.float32) - jnp.array(mean, jnp.float32)) / jnp.array(
        std, jnp.float32
    )
    size = jnp.asarray(image_size)
    inside = pyramid.inside_mask((pixels.shape[1], pixels.shape[2]), size[:, 0], size[:, 1])
    return jnp.where(inside[..., None], pixels, 0).astype(dtype)


def init_variables(network: DetectorNetwork, image_shape: tuple[int, int], seed: int) -> Any:
    """Random variables of a network, to be jitted: {"params": ..., "batch_stats": ...}.

    Args:
      network: without variables.
      image_shape: (H, W) of any padded image, px; the variables do not depend on it.
      seed: of the random numbers.
    """
    images = jnp.zeros((1, *image_shape, 3), jnp.float32)
    return network.init(jax.random.key(seed), images, jnp.array([image_shape], jnp.int32))


def frozen_mask(params: Any, config: ModelConfig) -> Any:
    """Tree of bool like `params`: True for the parameters that are not trained.

    They are those of the backbone's first `config.frozen_stages` stages; the network itself only
    stops their gradients, so an optimizer with weight decay needs this mask too.

    Args:
      params: of a `DetectorNetwork`, arrays or shapes.
      config: of the network.
    """
    stage_of = make_backbone(config).stage_of

    def is_frozen(path: tuple[Any, ...], _: Any) -> bool:
        part, *names = (key.key for key in path)
        return part == "backbone" and stage_of(tuple(names)) <= config.frozen_stages

    return jax.tree_util.tree_map_with_path(is_frozen, params)
