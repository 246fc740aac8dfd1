"""Networks in float32 compute in float32: TPUs round the operands of products to bfloat16 unasked.

On a TPU, JAX's default precision is one pass of the matrix units over operands rounded to bfloat16,
for float32 arrays too: `bf16 x f32 -> f32` in the compiled program of a float32 layer (v5e). The
highest precision takes six such passes, and keeps float32. CPUs have no such rounding; GPUs round
to TF32 as in PyTorch, and are left alone.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp


def of_network(dtype: Any, platform: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network, and its gradients, are traced.

    Whoever sets `jax_default_matmul_precision` (or the variable JAX_DEFAULT_MATMUL_PRECISION) has
    the last word.

    Args:
      dtype: compute type of the network.
      platform: that the program is compiled for.
    """
    is_set = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    if platform == "tpu" and jnp.dtype(dtype) == jnp.float32 and not is_set:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()
