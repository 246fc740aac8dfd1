"""Writes the self-test's golden values: its network in float64 on a CPU.

Usage: JAX_ENABLE_X64=1 JAX_PLATFORMS=cpu python tests/oracles/write_selftest_golden.py FILE
"""

import sys
from typing import Any

import numpy as np

from atss_jax.run.selftest import network


def main() -> None:
    """Computes and writes."""
    groups, _ = network.run_step(np.float64)
    assert all(x.dtype == np.float64 for x in groups["outputs"] + groups["gradients"])
    rows: dict[str, Any] = {
        name: network.sample(arrays).astype(np.float32) for name, arrays in groups.items()
    }
    np.savez_compressed(sys.argv[1], **rows)


if __name__ == "__main__":
    main()
