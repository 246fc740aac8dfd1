"""The largest resident set of this process, for benchmarks."""

import resource
import sys
from pathlib import Path


def peak_memory_mib() -> float:
    """Largest resident set of this process so far, or since `forget_peak_memory`.

    Not `ru_maxrss` on Linux: a child process begins with its parent's.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def forget_peak_memory() -> None:
    """Starts `peak_memory_mib` again from the present resident set (Linux only)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
