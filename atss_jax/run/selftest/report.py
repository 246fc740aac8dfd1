"""Runs all checks of the self-test: one line per check, then one line of JSON.

Compilers and drivers do compute wrong numbers without a word (jaxlib 0.10.2 on CPUs: JAX issue
39103). Every check compares what the device computes with NumPy or float64, or with itself after a
round trip.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atss_jax.run import workdir_files
from atss_jax.run.selftest import arithmetic, network
from atss_jax.runtime.metric_writer import configure_logging

DRIVER_FILE = Path("/proc/driver/nvidia/version")
ACCELERATOR_PACKAGES = (
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
"""Reported where they are installed."""


class Check(NamedTuple):
    """Outcome of one check."""

    name: str
    passed: bool
    detail: str
    seconds: float


def selftest() -> bool:
    """Runs and prints all checks; True if all passed."""
    configure_logging()
    start = time.perf_counter()
    about = describe_machine()
    for name, value in about.items():
        print(f"     {name:28s} {value}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", folder)
        checks = []
        for check in run_checks():
            verdict = "ok  " if check.passed else "FAIL"
            print(f"{verdict} {check.name:28s} {check.detail} ({check.seconds:.1f} s)", flush=True)
            checks.append(check)
    failed = [check.name for check in checks if not check.passed]
    seconds, cpu_seconds = round(time.perf_counter() - start, 1), round(time.process_time(), 1)
    passed = f"{len(checks) - len(failed)} of {len(checks)} checks passed"
    print(f"{passed} in {seconds} s ({cpu_seconds} s of CPU time)")
    rows = {check.name: {"passed": check.passed, "detail": check.detail} for check in checks}
    times = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    print(json.dumps({"passed": not failed, **times, "checks": rows, **about}))
    return not failed


def describe_machine() -> dict[str, str]:
    """Device, driver, libraries and versions, in words."""
    device = jax.devices()[0]
    about = {
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "platform version": " ".join(str(device.client.platform_version).split()),
        "system": platform.platform(),
        **workdir_files.versions(),
    }
    for name in ACCELERATOR_PACKAGES:
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if DRIVER_FILE.exists():
        about["NVIDIA driver"] = DRIVER_FILE.read_text().splitlines()[0]
    return about


def run_checks() -> Iterator[Check]:
    """Every check, as it ends; one that raises has failed."""
    tests: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("compilation cache", compilation_cache),
        *arithmetic.CHECKS,
        *network.CHECKS,
    ]
    for name, test in tests:
        start = time.perf_counter()
        try:
            passed, detail = test()
        except Exception as error:  # one broken part must not hide the others
            passed, detail = False, f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
        yield Check(name, passed, detail, time.perf_counter() - start)


def compilation_cache() -> tuple[bool, str]:
    """Whether a compiled program is found again; a miss costs time only, so it is no failure."""
    hits = []
    minimum = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
    )
    for _ in range(2):
        jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.arange(7.0)).block_until_ready()
        jax.clear_caches()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", minimum)
    return True, "hit" if hits else "MISS: every start compiles again"
