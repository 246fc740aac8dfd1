"""AnchorGrid: a static description of all anchors of a bucket, and what can be read off it.

The grid is plain Python numbers (hashable, so it can be a static jit argument); its arrays are
NumPy constants. Assigners need no array of boxes at all where arithmetic on the grid is cheaper.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from atss_jax.geometry import pyramid
from atss_jax.geometry.config import AnchorConfig
from atss_jax.typing import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """Anchors over P3..P7 of images padded to one `image_shape`.

    Anchor order: level by level, rows, columns, then anchors per location (aspect ratio by aspect
    ratio, within it octave scale by octave scale), as the official code's.

    Attributes:
      image_shape: (H, W) of the padded image (the bucket), px; multiples of 32.
      strides: px between neighbouring anchors of each level.
      anchor_scale: side of the square base anchor, in strides (the paper's 8).
      scales_per_octave: anchors of scale 2^(i/n), i < n, at each location (RetinaNet: 3).
      aspect_ratios: height / width of the anchors (RetinaNet: 0.5, 1, 2).
      center_offset: place of the first anchor's centre, in strides: 0.5 (ATSS) or 0 (mmdetection).
      offset_px: a further shift of all anchors, px: 0.5 gives the official grid, see the README.
    """

    image_shape: tuple[int, int]
    strides: tuple[int, ...] = pyramid.STRIDES
    anchor_scale: float = 8.0
    scales_per_octave: int = 1
    aspect_ratios: tuple[float, ...] = (1.0,)
    center_offset: float = 0.5
    offset_px: float = 0.0

    def __post_init__(self):
        if any(side < 1 or side % pyramid.PAD_MULTIPLE for side in self.image_shape):
            raise ValueError(
                f"image_shape={self.image_shape}: both sides must be positive multiples of "
                f"{pyramid.PAD_MULTIPLE} px. Pad the image."
            )
        if self.strides != pyramid.STRIDES:
            raise ValueError(f"strides={self.strides}: only P3..P7, {pyramid.STRIDES}, exist.")
        if self.anchor_scale <= 0 or self.scales_per_octave < 1:
            raise ValueError(
                f"anchor_scale={self.anchor_scale}, scales_per_octave={self.scales_per_octave}: "
                "both must be positive."
            )
        if not self.aspect_ratios or min(self.aspect_ratios) <= 0:
            raise ValueError(f"aspect_ratios={self.aspect_ratios}: one or more positive numbers.")

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.strides)

    @property
    def num_per_location(self) -> int:
        """a, anchors that share one centre."""
        return len(self.aspect_ratios) * self.scales_per_octave

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of every level, in cells."""
        return pyramid.level_shapes(self.image_shape)

    @property
    def num_per_level(self) -> tuple[int, ...]:
        """Anchors of each level."""
        return tuple(h * w * self.num_per_location for h, w in self.level_shapes)

    @property
    def level_starts(self) -> tuple[int, ...]:
        """Index of the first anchor of each level."""
        return tuple(int(n) for n in np.cumsum((0, *self.num_per_level[:-1])))

    @property
    def num_anchors(self) -> int:
        """A.

        >>> AnchorGrid((800, 1344)).num_anchors
        22400
        """
        return sum(self.num_per_level)

    def with_image_shape(self, image_shape: tuple[int, int]) -> "AnchorGrid":
        """The same anchors over another bucket.

        Args:
          image_shape: (H, W) px of the padded image.
        """
        return dataclasses.replace(self, image_shape=image_shape)

    def cell_sizes(self, level: int) -> np.ndarray:
        """(width, height) px of the anchors at one location of a level, float64 [a, 2].

        Widths are rounded as in the official code: the square of side `stride` gives
        w = round(sqrt(stride^2 / ratio)), h = round(w * ratio) (half to even), and only then
        scales by `anchor_scale` and the octave.

        Args:
          level: 0 for P3.
        """
        stride = self.strides[level]
        ratios = np.array(self.aspect_ratios, np.float64)
        widths = np.round(np.sqrt(stride * stride / ratios))
        sizes = np.stack([widths, np.round(widths * ratios)], axis=-1)
        octaves = 2.0 ** (np.arange(self.scales_per_octave) / self.scales_per_octave)
        return (sizes[:, None] * (self.anchor_scale * octaves)[None, :, None]).reshape(-1, 2)

    def level_centers(self, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Centres px of a level's columns and rows: (x float64 [w], y float64 [h]).

        Args:
          level: 0 for P3.
        """
        height, width = self.level_shapes[level]
        stride = self.strides[level]
        x = (np.arange(width) + self.center_offset) * stride + self.offset_px
        y = (np.arange(height) + self.center_offset) * stride + self.offset_px
        return x, y

    def centers(self) -> np.ndarray:
        """(x, y) px of every anchor's centre, float32 [A, 2]. Read-only."""
        return _centers(self)

    def boxes(self) -> np.ndarray:
        """xyxy px of every anchor, float32 [A, 4]. Read-only.

        >>> AnchorGrid((32, 32)).boxes()[0]
        array([-28., -28.,  36.,  36.], dtype=float32)
        """
        return _boxes(self)

    def anchor_strides(self) -> np.ndarray:
        """Stride of every anchor's level, px, float32 [A]. Read-only."""
        return _anchor_strides(self)

    def own_level_shapes(self, image_size: Int[Array, "2"]) -> Int[Array, "L 2"]:
        """(h, w) in cells of the part of each level that belongs to an image.

        An anchor exists for an image iff it would exist were that image alone, padded to a
        multiple of 32: so nothing about an image depends on its bucket.

        Args:
          image_size: (h, w) of the content, px; at most `image_shape`.
        """
        return jnp.stack(pyramid.level_sides(image_size))

    def own_mask(self, image_size: Int[Array, "2"]) -> Bool[Array, " A"]:
        """True for the anchors of an image's own grid (see `own_level_shapes`).

        Args:
          image_size: (h, w) px of the content.
        """
        own = self.own_level_shapes(image_size)
        masks = [
            jnp.repeat(
                pyramid.inside_mask(shape, own[i, 0], own[i, 1]).ravel(), self.num_per_location
            )
            for i, shape in enumerate(self.level_shapes)
        ]
        return jnp.concatenate(masks)


def make_grid(config: AnchorConfig, image_shape: tuple[int, int]) -> AnchorGrid:
    """The anchors that a recipe describes, over images padded to one shape.

    Args:
      config: which anchors there are at each location.
      image_shape: (H, W) of the padded image (the bucket), px.

    Raises:
      ValueError: a side is not a positive multiple of 32.

    >>> make_grid(AnchorConfig(scales_per_octave=3), (32, 64)).num_per_location
    3
    """
    return AnchorGrid(
        image_shape=image_shape,
        anchor_scale=config.anchor_scale,
        scales_per_octave=config.scales_per_octave,
        aspect_ratios=config.aspect_ratios,
        center_offset=config.center_offset,
        offset_px=config.offset_px,
    )


@functools.lru_cache(maxsize=64)
def _centers(grid: AnchorGrid) -> np.ndarray:
    levels = []
    for level in range(grid.num_levels):
        x, y = np.meshgrid(*grid.level_centers(level))
        xy = np.stack([x.ravel(), y.ravel()], axis=-1)
        levels.append(np.repeat(xy, grid.num_per_location, axis=0))
    return _frozen(np.concatenate(levels))


@functools.lru_cache(maxsize=64)
def _boxes(grid: AnchorGrid) -> np.ndarray:
    levels = []
    for level in range(grid.num_levels):
        x, y = np.meshgrid(*grid.level_centers(level))
        xy = np.stack([x.ravel(), y.ravel()], axis=-1)[:, None]
        half = grid.cell_sizes(level)[None] / 2
        levels.append(np.concatenate([xy - half, xy + half], axis=-1).reshape(-1, 4))
    return _frozen(np.concatenate(levels))


@functools.lru_cache(maxsize=64)
def _anchor_strides(grid: AnchorGrid) -> np.ndarray:
    return _frozen(np.repeat(np.array(grid.strides, np.float64), grid.num_per_level))


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array.flags.writeable = False
    return array
