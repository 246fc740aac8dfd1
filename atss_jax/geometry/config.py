"""Recipe group "anchors"."""

import dataclasses
from typing import Annotated

from atss_jax.config import ConfigGroup, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorConfig(ConfigGroup, name="anchors"):
    """Which anchors there are at each location; see `anchors.AnchorGrid`."""

    anchor_scale: Annotated[float, Range(above=0)] = 8.0
    """Side of the square base anchor in strides (paper Sec. 4.1: 8S)."""
    scales_per_octave: Annotated[int, Range(1)] = 1
    """Anchors of scale 2^(i/n), i < n, at each location (RetinaNet: 3)."""
    aspect_ratios: Annotated[tuple[float, ...], Range(above=0)] = (1.0,)
    """Height / width of the anchors (RetinaNet: 0.5, 1, 2)."""
    center_offset: float = 0.5
    """Place of the first anchor's centre in strides: 0.5 is the middle of its cell."""
    offset_px: float = 0.0
    """A further shift of all anchors in px; 0.5 for imported official checkpoints."""

    @property
    def num_per_location(self) -> int:
        """a: anchors per location."""
        return self.scales_per_octave * len(self.aspect_ratios)
