"""Normalization: which mean and deviation a network's images are normalised with, as one value."""

from typing import NamedTuple


class Normalization(NamedTuple):
    """The keywords of `models.detector.normalize_images` as one value."""

    mean: tuple[float, ...]
    """Of the three channels in the order of `channel_order`, 0..255."""
    std: tuple[float, ...]
    """Divisor of the three channels, likewise."""
    channel_order: str = "rgb"
    """Order of the channels that the network was trained on, "rgb" or "bgr"."""
