"""XLA switches that must be in the environment before JAX makes its first program. No JAX here."""

import os
from importlib import metadata

SWITCH = "--xla_cpu_experimental_ynn_fusion_type"
YNN_OFF = f"{SWITCH}="
"""No YNN kernels at all. Its sums alone are wrong, but with the rest of it a small network's step
is slower on that release, and a large one's no faster (docs/benchmarks.md)."""
AFFECTED_JAXLIB = ("0.10.2",)
"""Releases tried here whose CPU backend sums wrong without a word (JAX issue 39103)."""


def avoid_known_miscompilations() -> None:
    """Sets the switch that keeps an affected jaxlib from summing wrong on CPUs.

    Importing the package calls this. A value that the user gave for the same switch stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if SWITCH not in flags and is_affected():
        os.environ["XLA_FLAGS"] = f"{flags} {YNN_OFF}".strip()


def is_affected() -> bool:
    """Whether the installed jaxlib is one of `AFFECTED_JAXLIB`."""
    return metadata.version("jaxlib") in AFFECTED_JAXLIB


def note() -> str | None:
    """What a user of an affected jaxlib must know, None for the others."""
    if not is_affected():
        return None
    problem = f"jaxlib {metadata.version('jaxlib')} computes some sums wrong on CPUs (JAX #39103)"
    if YNN_OFF in os.environ.get("XLA_FLAGS", "").split():
        return f"{problem}: switched off by XLA_FLAGS={YNN_OFF}"
    return (
        f"{problem}, and XLA_FLAGS has its own {SWITCH}, which stays. Upgrade jaxlib, or use "
        f"{YNN_OFF}"
    )
