"""Devices that are not here: topologies that XLA compiles for. Imports no JAX by itself."""

import importlib.util
import os
import re
from typing import Any

from atss_jax.errors import UserError

GPU_TARGETS = {
    "h100": ("NVIDIA H100 80GB HBM3", 9, 0, 132, 1.98, 80_000_000_000, 3_350, 50, 227, 228, 128),
    "a100": ("NVIDIA A100-SXM4-80GB", 8, 0, 108, 1.41, 80_000_000_000, 2_039, 40, 163, 164, 64),
}
"""Facts of GPUs from NVIDIA's data sheets and tuning guides: name, compute capability (2 numbers),
multiprocessors, GHz, bytes, GB/s, MiB of L2 cache, KiB of shared memory of a block and of a
multiprocessor, float32 units of a multiprocessor."""


def prepare_environment(topology: str) -> None:
    """Sets what the compilers need; before JAX is imported.

    Raises:
      UserError: the compiler of this topology is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    platform, _ = split_topology(topology)
    if platform == "tpu":
        if not _is_installed("libtpu"):
            raise UserError(
                f"--topology={topology}: the TPU compiler, libtpu, is not installed. "
                "pip install 'atss_jax[tpu-aot]' (Linux, x86-64; no TPU is needed)."
            )
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks the cloud for its chips
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    elif platform == "cuda":
        if not _is_installed("jax_plugins.xla_cuda12"):
            raise UserError(
                f"--topology={topology}: the GPU compiler is not installed. "
                "pip install 'atss_jax[cuda12]' (no GPU is needed)."
            )
        # There is no GPU on which kernels could be timed.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def split_topology(topology: str) -> tuple[str, str]:
    """("tpu", "v5e:2x2"), ("cuda", "h100:4") or ("cpu", "1").

    Raises:
      UserError: neither of them.
    """
    name, _, shape = topology.partition(":")
    if re.fullmatch(r"v\d+\w*", name) and re.fullmatch(r"\d+(x\d+)+", shape):
        return "tpu", topology
    if name in GPU_TARGETS and shape.isdecimal() and int(shape) > 0:
        return "cuda", topology
    if name == "cpu" and shape in ("", "1"):
        return "cpu", "1"
    raise UserError(
        f"--topology={topology}: use a TPU slice (v5e:2x2, v5e:16x16, v6e:2x4, v5p:2x2x1), GPUs "
        f"of one machine ({', '.join(f'{kind}:8' for kind in GPU_TARGETS)}), or cpu."
    )


def make_mesh(topology: str) -> Any:
    """The mesh of a topology: one axis over all of its devices, as a run's.

    Raises:
      UserError: the compiler does not know the topology.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    from atss_jax.runtime import parallel

    platform, name = split_topology(topology)
    if platform == "cpu":
        return Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,), axis_types=(AxisType.Auto,))
    keywords: dict[str, Any] = {}
    if platform == "cuda":
        name, _, count = name.partition(":")
        keywords = {"target_config": _gpu_target(name), "topology": f"1x1x{count}"}
    try:
        found = topologies.get_topology_desc(platform=platform, topology_name=name, **keywords)
    except Exception as error:  # the plugins raise several types
        raise UserError(f"--topology={topology}: the compiler refuses it: {error}") from error
    return Mesh(np.array(found.devices), (parallel.AXIS,), axis_types=(AxisType.Auto,))


def _gpu_target(name: str) -> str:
    """The description of a GPU that XLA compiles for, a protocol buffer as text."""
    model, major, minor, cores, ghz, size, rate, cache, block, shared, units = GPU_TARGETS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {block << 10}
  shared_memory_per_core: {shared << 10}
  core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {rate * 10**9} l2_cache_size: {cache << 20} clock_rate_ghz: {ghz}
  device_memory_size: {size}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  device_vendor: "NVIDIA Corporation" name: "{model}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{model}"
"""
