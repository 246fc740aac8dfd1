"""Array types and the dimension glossary, shared by every module.

Annotations read `Float[Array, "B A 4"]`. The letters, everywhere in the package:

| letter | meaning |
|---|---|
| `B` | images in a batch |
| `H W` | height and width of the padded image, px |
| `L` | pyramid levels (P3 to P7: five) |
| `h w` | height and width of one level's feature map |
| `a` | anchors per location |
| `A` | anchors over all levels: level by level, row-major, then anchors per location |
| `G` | ground-truth slots, padding included |
| `K` | classes |
| `D` | detections kept |
| `C` | channels |
| `N M` | any number of boxes |

Tests check the annotations while tracing (jaxtyping's import hook with beartype); without the
hook they cost nothing.
"""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

Array: TypeAlias = jax.Array
"""A JAX array, concrete or traced."""

AnyArray: TypeAlias = jax.Array | np.ndarray
"""A device or host array; for batches, which are NumPy before the loader's border and JAX after."""

__all__ = ["AnyArray", "Array", "Bool", "Float", "Int", "Shaped", "UInt8"]
