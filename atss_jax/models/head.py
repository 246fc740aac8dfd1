"""The dense head: P3..P7 to class logits, box regression and centerness.

One head for the paper's whole family. ATSS (Zhang et al. 2020, Sec. 3.2 and 4), FCOS (Tian et al.
2019) and RetinaNet (Lin et al. 2017) are settings of it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from atss_jax.models import layers
from atss_jax.models.config import ModelConfig
from atss_jax.models.deform_conv import DeformConv
from atss_jax.models.distributions import DistributionQuality, expected_distances, joint_logits
from atss_jax.models.dynamic_head import DynamicBlock
from atss_jax.models.star_refinement import StarConv
from atss_jax.structures import HeadOutputs
from atss_jax.typing import Array, Bool, Float

NORMAL = nn.initializers.normal(0.01)
"""The official initialisation of all convolutions of the head."""

POINT_BIAS = 4.0
"""Initial bias of relu-activated point regression: 4 strides, half the side of an 8S anchor."""


class Tower(nn.Module):
    """3x3 convolutions, each with GroupNorm (or none) and ReLU, shared by all levels.

    Attributes:
      config: the recipe's fields.
      dtype: compute type.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "B _h _w C"], ...],
        masks: tuple[Bool[Array, "B _h _w"] | None, ...],
    ) -> tuple[Float[Array, "B _h _w C"], ...]:
        """The tower's output at each level, zero outside the own cells."""
        channels = features[0].shape[-1]
        for i in range(self.config.head_convs):
            if self.config.head_dcn and i == self.config.head_convs - 1:
                # The official loop over the head's convolutions misses the deformable kernel: it
                # keeps PyTorch's own initialisation, U(-1/sqrt(fan_in), +).
                deformable = DeformConv(
                    channels,
                    kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
                    offset_init=NORMAL,
                    dtype=self.dtype,
                    name=f"conv{i}",
                )
                features = tuple(deformable(x) for x in features)
            else:
                conv = layers.Conv(channels, kernel_init=NORMAL, dtype=self.dtype, name=f"conv{i}")
                features = conv.on_levels(features)
            if self.config.head_norm == "group_norm":
                norm = layers.GroupNorm(dtype=self.dtype, name=f"norm{i}")
                features = tuple(norm(x, m) for x, m in zip(features, masks, strict=True))
            features = tuple(
                layers.zero_outside(nn.relu(x), m) for x, m in zip(features, masks, strict=True)
            )
        return features


class Head(nn.Module):
    """Two towers and three prediction convolutions, shared by all levels.

    Attributes:
      config: the recipe's fields.
      num_classes: K.
      num_anchors: a, anchors per location.
      dtype: compute type; outputs are float32 at least.
    """

    config: ModelConfig
    num_classes: int
    num_anchors: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "B _h _w C"], ...],
        masks: tuple[Bool[Array, "B _h _w"] | None, ...],
        *,
        train: bool = False,
    ) -> HeadOutputs:
        """Predictions of every level; meaningless outside the own cells.

        Args:
          features: P3..P7.
          masks: own cells of each; None for all.
          train: give what only losses read, too.
        """
        config = self.config
        for i in range(config.dynamic_blocks):
            features = DynamicBlock(self.dtype, name=f"dynamic{i}")(features, masks)

        def tower(name: str) -> tuple[Array, ...]:
            return Tower(config, self.dtype, name=name)(features, masks)

        def predict(
            name: str, maps: Sequence[Array], per_anchor: int, bias: float = 0.0
        ) -> list[Array]:
            conv = layers.Conv(
                self.num_anchors * per_anchor,
                kernel_init=NORMAL,
                bias_init=nn.initializers.constant(bias),
                dtype=self.dtype,
                name=name,
            )
            wide = jnp.promote_types(self.dtype, jnp.float32)
            return [
                x.astype(wide).reshape(*x.shape[:3], self.num_anchors, per_anchor)
                for x in conv.on_levels(maps)
            ]

        cls_maps, box_maps = tower("cls_tower"), tower("box_tower")
        per_side = config.side_bins + 1
        bias = self._first_distance()
        boxes = predict("box_regression", box_maps, 4 * per_side, bias)
        if config.level_scale:
            scale = self.param("level_scale", nn.initializers.ones_init(), (len(boxes),))
            boxes = [x * scale[i] for i, x in enumerate(boxes)]
        sides = first_boxes = None
        if config.side_bins:
            sides = tuple(x.reshape(*x.shape[:-1], 4, per_side) for x in boxes)
            boxes = [expected_distances(x) for x in sides]
        elif config.regression == "point":
            relu = config.point_activation == "relu"
            boxes = [nn.relu(x) if relu else jnp.exp(x) for x in boxes]
        if config.star_refinement:
            first_boxes = tuple(boxes)
            distances = tuple(x[..., 0, :] for x in boxes)  # a point has one box

            def star(name: str, maps: tuple[Array, ...]) -> tuple[Array, ...]:
                return StarConv(NORMAL, self.dtype, name=name)(maps, distances, masks)

            cls_maps, refined_maps = star("cls_star", cls_maps), star("box_star", box_maps)
            factors = predict("box_refinement", refined_maps, 4)
            if config.level_scale:
                scale = self.param("refinement_scale", nn.initializers.ones_init(), (len(boxes),))
                factors = [x * scale[i] for i, x in enumerate(factors)]
            boxes = [
                jnp.exp(x) * lax.stop_gradient(box)
                for x, box in zip(factors, first_boxes, strict=True)
            ]
        prior = -math.log((1 - config.class_prior) / config.class_prior)
        logits = predict("cls_logits", cls_maps, self.num_classes, prior)
        if sides is not None and config.distribution_quality:
            quality = DistributionQuality(name="distribution_quality")
            logits = [
                joint_logits(x, quality(side)[..., None])
                for x, side in zip(logits, sides, strict=True)
            ]
        centerness = None
        if config.centerness != "none":
            maps = box_maps if config.centerness == "box" else cls_maps
            centerness = tuple(x[..., 0] for x in predict("centerness", maps, 1))
        if not train:
            sides = first_boxes = None
        return HeadOutputs(tuple(logits), tuple(boxes), centerness, sides, first_boxes)

    def _first_distance(self) -> float:
        """Initial bias of the box regression."""
        config = self.config
        if config.regression != "point" or config.side_bins:
            return 0.0
        if config.point_activation == "relu":
            return POINT_BIAS
        return math.log(POINT_BIAS) if config.star_refinement else 0.0
