"""Writes the self-test's golden values: its network in float64 on a CPU.

Usage: JAX_ENABLE_X64=1 JAX_PLATFORMS=cpu python tests/oracles/write_selftest_golden.py FILE
"""

import sys

import numpy as np

from atss_jax.run.selftest import network


def main() -> None:
    """Computes and writes."""
    groups, _ = network.run_step(np.float64)
    assert all(x.dtype == np.float64 for x in groups["outputs"] + groups["gradients"])
    rows = {name: network.sample(arrays) for name, arrays in groups.items()}
    np.savez_compressed(sys.argv[1], **{k: v.astype(np.float32) for k, v in rows.items()})


if __name__ == "__main__":
    main()
