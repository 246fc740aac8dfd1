"""Compiles a program for devices that are not here; all figures of it, as JSON values.

Memory, FLOPs, collectives and types are the compiler's facts about its program. Milliseconds, and
what follows from them, are a model: the compiler's estimated cycles of every scheduled instruction,
loops times their trip counts. They rank costs and do not predict the time of a step. Programs for
GPUs carry no such estimates, so they have no milliseconds.
"""

import importlib.metadata
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from atss_jax.files import write_whole
from atss_jax.run.ahead import costs, hlo_text, programs
from atss_jax.run.describe import count_macs
from atss_jax.runtime import parallel, precision, tpu_options


class Device(NamedTuple):
    """Figures of one device, from the vendors' data sheets."""

    hertz: float | None
    """Clock that cycles are counted in; None where programs carry no cycles."""
    peak_flops: float
    """Dense bfloat16, FLOP/s."""
    memory_bytes: float
    bytes_per_second: float
    """Of its memory."""


DEVICES = {
    "v4": Device(1.05e9, 275e12, 32e9, 1228e9),
    "v5e": Device(1.5e9, 197e12, 16e9, 819e9),
    "v5p": Device(1.75e9, 459e12, 95e9, 2765e9),
    "v6e": Device(1.75e9, 918e12, 32e9, 1640e9),
    "h100": Device(None, 989e12, 80e9, 3350e9),
    "a100": Device(None, 312e12, 80e9, 2039e9),
}
"""By the first word of a topology. TPU clocks follow from the peak and the multipliers of the
matrix units (v5e: 4 units x 128 x 128 x 2 x 1.5e9 = 197e12)."""


INFERENCE = ("predict", "postprocess")
"""Parts that no training step holds."""


def measure(
    case: programs.Case,
    topology: str,
    part: str = "train",
    *,
    compiler_options: Mapping[str, str] | None = None,
    hlo_file: Any = None,
) -> dict[str, Any]:
    """Compiles a program; returns all figures.

    Args:
      case: what is compiled.
      topology: the devices of its mesh, by name.
      part: a key of `programs.PROGRAMS`.
      compiler_options: for XLA; None for those of training, and none for what `INFERENCE` names.
      hlo_file: path that the compiled program's text is written to; None for none.

    Raises:
      UserError: no such part.
    """
    program = programs.find(part)(case)
    platform = parallel.platform_of(case.mesh)
    of_step = case.per_device // case.config.optim.accumulate
    images = of_step if part == "train" else case.per_device  # other parts have no micro-batches
    if compiler_options is None:
        is_trained = part not in INFERENCE
        compiler_options = tpu_options.compiler_options(platform, of_step) if is_trained else {}
    started, cpu = time.perf_counter(), time.process_time()
    with precision.of_network(case.config.model.dtype, platform):  # whole steps enter it themselves
        traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
    trace_seconds = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile(compiler_options=dict(compiler_options) or None)
    compile_seconds = time.perf_counter() - started
    text = compiled.as_text()
    if hlo_file:
        write_whole(hlo_file, text)
    report = {
        "part": part,
        "topology": topology,
        "devices": case.mesh.size,
        "compiler_options": dict(compiler_options),
        "bucket": list(case.bucket),
        "per_device": case.per_device,
        "micro_batch": images,
        "dtype": case.config.model.dtype,
        "fsdp": case.config.run.fsdp,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "trace_s": trace_seconds,
        "compile_s": compile_seconds,
        "compile_cpu_s": time.process_time() - cpu,
        **memory_figures(compiled),
    }
    analytic = 2.0 * count_macs(traced.jaxpr.jaxpr)  # a multiply-add is two operations
    return report | program_figures(
        text, report, compiled.cost_analysis() or {}, analytic / case.mesh.size
    )


def versions() -> dict[str, str]:
    """Versions of what has a say in the program."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def memory_figures(compiled: Any) -> dict[str, Any]:
    """MiB of a device by kind."""
    memory = compiled.memory_analysis()
    mib = {
        name: getattr(memory, f"{name}_size_in_bytes") / 2**20
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    return {
        "memory_mib": mib,
        "peak_memory_mib": getattr(memory, "peak_memory_in_bytes", 0) / 2**20,
    }


def program_figures(
    text: str, report: dict[str, Any], analysis: dict[str, Any], analytic: float
) -> dict[str, Any]:
    """All figures that follow from a program's text.

    Args:
      text: of the compiled program.
      report: has "topology", "micro_batch" (images of a device) and "peak_memory_mib".
      analysis: the compiler's "flops" and "bytes accessed" of a device, where it has them.
      analytic: FLOPs of a device by the traced program.
    """
    device = DEVICES.get(report["topology"].partition(":")[0])
    program = hlo_text.parse(text)
    scheduled = costs.scheduled(program)
    flops = float(analysis.get("flops", 0.0))
    figures: dict[str, Any] = {
        "flops": flops,
        "analytic_flops": analytic,
        "bytes_accessed": float(analysis.get("bytes accessed", 0.0)),
        "modelled_ms": None,
        "mfu": None,
        "mfu_compiler": None,
        "data_movement_share": None,
        "collectives": costs.collectives(program),
        "convolutions": costs.convolutions(program, report["micro_batch"]),
        "loops": costs.loops(program),
        "padding": costs.padding(scheduled),
    }
    if device is not None:
        figures["memory_share"] = report["peak_memory_mib"] * 2**20 / device.memory_bytes
        figures["bound_ms_by_flops"] = 1e3 * max(flops, analytic) / device.peak_flops
        figures["bound_ms_by_bytes"] = 1e3 * figures["bytes_accessed"] / device.bytes_per_second
    if device is not None and device.hertz:
        figures |= costs.times(scheduled, device.hertz)
        available = figures["modelled_ms"] / 1e3 * device.peak_flops
        if available:
            figures |= {"mfu": analytic / available, "mfu_compiler": flops / available}
    return figures
