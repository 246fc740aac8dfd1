"""The backbones by name.

A new one is a `Backbone` in its own file, a line here, and its name in `ModelConfig.backbone`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from atss_jax.models.backbone import Backbone
from atss_jax.models.config import ModelConfig
from atss_jax.models.convnext import make_convnext
from atss_jax.models.resnet import make_resnet

BACKBONES: dict[str, Callable[[ModelConfig, Any], Backbone]] = {
    "resnet18": make_resnet,
    "resnet34": make_resnet,
    "resnet50": make_resnet,
    "resnet101": make_resnet,
    "resnet152": make_resnet,
    "resnext101_32x8d": make_resnet,
    "resnext101_64x4d": make_resnet,
    "convnext_tiny": make_convnext,
}
"""`ModelConfig.backbone` -> (config, compute type) -> module, named "backbone"."""


def make_backbone(config: ModelConfig, dtype: Any = jnp.float32) -> Backbone:
    """The backbone of a recipe, without variables."""
    return BACKBONES[config.backbone](config, dtype)
