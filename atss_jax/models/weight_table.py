"""Pretrained backbones by name, each with the recipe values that belong to it."""

from typing import Literal, NamedTuple

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet's, of RGB in 0..255: torchvision's constants times 255."""


class PretrainedBackbone(NamedTuple):
    """Weights on the hub, and what a network needs to be told to use them."""

    name: str
    """On the hub."""
    parameters: int
    """Of the file, the classifier included; 4 bytes each."""
    licence: str
    flavour: Literal["torchvision", "msra"] = "torchvision"
    """`model.flavour`."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """`data.channel_order`."""
    mean: tuple[float, float, float] = MEAN
    """`data.mean`."""
    std: tuple[float, float, float] = STD
    """`data.std`."""
    frozen_stages: int = 2
    """`model.frozen_stages`: stem and C2, as the official configuration has it."""
    backbone_norm: Literal["frozen_bn", "batch_norm"] = "frozen_bn"
    """`model.backbone_norm`."""


BACKBONES: dict[str, PretrainedBackbone] = {
    "resnet18": PretrainedBackbone("timm/resnet18.tv_in1k", 11_689_512, "BSD-3-Clause"),
    "resnet34": PretrainedBackbone("timm/resnet34.tv_in1k", 21_797_672, "BSD-3-Clause"),
    "resnet50": PretrainedBackbone("timm/resnet50.tv_in1k", 25_557_032, "BSD-3-Clause"),
    "resnet101": PretrainedBackbone("timm/resnet101.tv_in1k", 44_549_160, "BSD-3-Clause"),
    "resnet152": PretrainedBackbone("timm/resnet152.tv_in1k", 60_192_808, "BSD-3-Clause"),
    "resnext101_32x8d": PretrainedBackbone(
        "timm/resnext101_32x8d.tv_in1k", 88_791_336, "BSD-3-Clause"
    ),
    "resnext101_64x4d": PretrainedBackbone(
        "timm/resnext101_64x4d.tv_in1k", 83_455_272, "BSD-3-Clause"
    ),
}
"""`model.backbone` -> its weights: torchvision's first ImageNet-1k weights, as timm keeps them."""
