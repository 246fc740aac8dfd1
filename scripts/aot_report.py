r"""What XLA's compilers say of a recipe on TPUs and GPUs that are not here.

    python scripts/aot_report.py --topology=v5e:2x2 --per-device=8          # the training step
    python scripts/aot_report.py --topology=v5e:2x2 --part=stem             # a part, in seconds
    python scripts/aot_report.py --topology=h100:8 --config=configs/fcos_r50_fpn_1x.py \
      --set model.dtype=float32 run.fsdp=True --json=report.json
    python scripts/aot_report.py --diff before.json after.json

Nothing runs on a device. Memory, FLOPs, collectives and types are the compiler's facts about its
program. Milliseconds, and what follows from them, are a model: the compiler's estimated cycles of
every scheduled instruction, loops times their trip counts. They rank costs and do not predict the
time of a step. Programs for GPUs carry no such estimates, so they have no milliseconds.

A whole training step takes 13 to 17 minutes of CPU time to compile for a TPU, a part some seconds.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import aot_costs
import aot_programs
import aot_topology
import hlo_text
from bench_train import read_recipe

ROOT = Path(__file__).resolve().parents[1]
COCO_CLASSES = 80


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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compiles the program; returns all figures.

    Raises:
      UserError: topology, compiler, recipe or compiler option is wrong or missing.
    """
    case = make_case(options)
    program = aot_programs.PROGRAMS[options.part](case)
    started, cpu = time.perf_counter(), time.process_time()
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
    trace_seconds = time.perf_counter() - started
    started = time.perf_counter()
    compiled = lowered.compile(compiler_options=dict(options.compiler_option) or None)
    compile_seconds = time.perf_counter() - started
    text = compiled.as_text()
    if options.save_hlo:
        Path(options.save_hlo).write_text(text)
    report = {
        "part": options.part,
        "topology": options.topology,
        "devices": case.mesh.size,
        "config": options.config,
        "set": options.set,
        "compiler_options": dict(options.compiler_option),
        "bucket": list(case.bucket),
        "per_device": case.per_device,
        "dtype": case.config.model.dtype,
        "fsdp": case.config.run.fsdp,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "trace_s": trace_seconds,
        "compile_s": compile_seconds,
        "compile_cpu_s": time.process_time() - cpu,
        **memory_figures(compiled),
    }
    return report | program_figures(
        text, report, compiled.cost_analysis() or {}, analytic_flops(traced) / case.mesh.size
    )


def make_case(options: argparse.Namespace) -> aot_programs.Case:
    """The recipe of the command line on the topology's mesh."""
    aot_topology.prepare_environment(options.topology)
    from atss_jax.run.recipe_io import recipe_from_mapping

    mesh = aot_topology.make_mesh(options.topology)
    values = read_recipe(options.config, options.set)
    values["data"]["global_batch"] = options.per_device * mesh.size
    values["data"]["buckets"] = (options.bucket,)
    values["eval"]["batch_size"] = options.per_device * mesh.size
    config = recipe_from_mapping(values)
    return aot_programs.Case(config, mesh, options.bucket, options.per_device, options.num_classes)


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


def analytic_flops(traced: Any) -> float:
    """Two for every multiply-add of convolutions and products in the traced program."""
    from atss_jax.run.describe import count_macs

    return 2.0 * count_macs(traced.jaxpr.jaxpr)


def program_figures(
    text: str, report: dict[str, Any], analysis: dict[str, Any], analytic: float
) -> dict[str, Any]:
    """All figures that follow from a program's text.

    Args:
      text: of the compiled program.
      report: has "topology" and "per_device".
      analysis: the compiler's "flops" and "bytes accessed" of a device, where it has them.
      analytic: FLOPs of a device by the traced program.
    """
    device = DEVICES.get(report["topology"].partition(":")[0])
    program = hlo_text.parse(text)
    costs = aot_costs.scheduled(program)
    flops = float(analysis.get("flops", 0.0))
    figures: dict[str, Any] = {
        "flops": flops,
        "analytic_flops": analytic,
        "bytes_accessed": float(analysis.get("bytes accessed", 0.0)),
        "modelled_ms": None,
        "mfu": None,
        "mfu_compiler": None,
        "data_movement_share": None,
        "collectives": aot_costs.collectives(program),
        "convolutions": aot_costs.convolutions(program, report["per_device"]),
        "loops": aot_costs.loops(program),
        "padding": aot_costs.padding(costs),
    }
    if device is not None:
        figures["memory_share"] = report["peak_memory_mib"] * 2**20 / device.memory_bytes
        figures["bound_ms_by_flops"] = 1e3 * max(flops, analytic) / device.peak_flops
        figures["bound_ms_by_bytes"] = 1e3 * figures["bytes_accessed"] / device.bytes_per_second
    if device is not None and device.hertz:
        figures |= aot_costs.times(costs, device.hertz)
        available = figures["modelled_ms"] / 1e3 * device.peak_flops
        if available:
            figures |= {"mfu": analytic / available, "mfu_compiler": flops / available}
    return figures


def render(report: dict[str, Any]) -> str:
    """A report for people."""
    got = report
    used = ", ".join(f"{name} {version}" for name, version in got["versions"].items())
    lines = [
        f"{got['part']} on {got['topology']} ({got['devices']} devices), {got['per_device']} "
        f"images of {got['bucket'][0]}x{got['bucket'][1]} a device, {got['dtype']}"
        + (", FSDP" if got["fsdp"] else ""),
        f"compiled, not run; {used}; {got['date']}",
        f"traced in {got['trace_s']:.0f} s, compiled in {got['compile_s']:.0f} s",
        "",
        "exact (the compiler's facts, one device)",
        "  MiB  "
        + ", ".join(f"{name.replace('_', ' ')} {v:.1f}" for name, v in got["memory_mib"].items())
        + f"; peak {got['peak_memory_mib']:.1f}"
        + (f" ({got['memory_share']:.0%} of the device)" if "memory_share" in got else ""),
        f"  GFLOP  compiler {got['flops'] / 1e9:.1f}, analytic {got['analytic_flops'] / 1e9:.1f}; "
        f"{got['bytes_accessed'] / 1e9:.2f} GB accessed",
    ]
    if "bound_ms_by_flops" in got:
        lines.append(
            f"  at the data sheet's rates: {got['bound_ms_by_flops']:.2f} ms by FLOPs, "
            f"{got['bound_ms_by_bytes']:.2f} ms by bytes"
        )
    lines += [
        f"  {c['kind']}: {c['operations']} of {c['arrays']} {c['type']} arrays, "
        f"{c['mib']:.2f} MiB, " + ("asynchronous" if c["asynchronous"] else "synchronous")
        for c in got["collectives"]
    ]
    lines += [f"  {count:4d} {name}" for name, count in got["convolutions"]["by_type"].items()]
    lines.append(
        f"  rewritten from space to batch: {got['convolutions']['rewritten_space_to_batch']}"
    )
    lines += [
        f"  loop of {loop['trip_count'] or 'unknown'} trips, {loop['source'] or 'no source line'}"
        for loop in got["loops"]
    ]
    lines.append(f"  padding of results to whole tiles: {got['padding']['mib']:.0f} MiB, of it")
    lines += [
        f"    {w['extra_mib']:8.1f} beside {w['mib']:.1f}  {w['array']}  {w['source']}"
        for w in got["padding"]["largest"]
    ]
    return "\n".join([*lines, "", *_time_lines(got)])


def _time_lines(got: dict[str, Any]) -> list[str]:
    """The modelled part of a report."""
    total = got["modelled_ms"]
    if total is None:
        return ["no modelled time: programs for this device carry no estimates"]
    images = got["per_device"]
    lines = [
        "model (the compiler's estimates; they rank costs, they do not predict a step's time)",
        f"  {total:.2f} ms, {total / images:.2f} an image; data movement "
        f"{got['data_movement_share'] or 0:.1%}; MFU {got['mfu'] or 0:.1%} analytic, "
        f"{got['mfu_compiler'] or 0:.1%} by the compiler's FLOPs",
        f"  {got['without_estimate']} instructions have no estimate and count as 0",
        "",
        f"  {'kind':24}{'ms':>9}{'share':>8}",
    ]
    lines += [f"  {k:24}{ms:>9.2f}{ms / total:>8.1%}" for k, ms in got["ms_by_kind"].items()]
    lines += ["", f"  {'part':24}{'forward':>9}{'backward':>9}"]
    lines += [
        f"  {part:24}{ms['forward']:>9.2f}{ms['backward']:>9.2f}"
        for part, ms in got["ms_by_part"].items()
    ]
    lines += ["", f"  {'source line':34}{'ms':>9}"]
    lines += [f"  {line:34}{ms:>9.2f}" for line, ms in got["ms_by_line"].items()]
    lines += ["", "  largest costs, ms"]
    lines += [
        f"  {c['ms']:8.3f}  {c['runs']}x {c['opcode']} ({c['kind']}) {c['source'] or '-'} "
        f"{', '.join(c['results'])}"
        for c in got["largest"]
    ]
    return lines


def diff(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two reports side by side: every number that is in both or in one of them."""

    def numbers(report: dict[str, Any]) -> dict[str, float]:
        found = {
            name: report[name]
            for name in (
                "modelled_ms", "mfu", "mfu_compiler", "data_movement_share", "peak_memory_mib",
                "flops", "bytes_accessed", "compile_cpu_s",
            )
            if report.get(name) is not None
        }  # fmt: skip
        found["padding MiB"] = report["padding"]["mib"]
        found["rewritten space to batch"] = report["convolutions"]["rewritten_space_to_batch"]
        found["loops"] = len(report["loops"])
        for name, mib in report["memory_mib"].items():
            found[f"memory {name} MiB"] = mib
        for c in report["collectives"]:
            name = f"{c['kind']} {c['type']} MiB"
            found[name] = found.get(name, 0.0) + c["mib"]
        for kind, ms in report.get("ms_by_kind", {}).items():
            found[f"ms {kind}"] = ms
        for part, ms in report.get("ms_by_part", {}).items():
            found[f"ms {part}"] = ms["forward"] + ms["backward"]
        return found

    old, new = numbers(before), numbers(after)
    lines = []
    for key in ("part", "topology", "bucket", "per_device", "dtype", "fsdp", "versions"):
        if before[key] != after[key]:
            lines.append(f"not the same {key}: {before[key]} and {after[key]}")
    lines.append(f"{'':34}{'before':>14}{'after':>14}{'change':>9}")
    for name in [*old, *(n for n in new if n not in old)]:
        a, b = old.get(name, 0.0), new.get(name, 0.0)
        change = f"{b / a - 1:>+9.1%}" if a else f"{'':9}"
        lines.append(f"{name:34}{a:>14.6g}{b:>14.6g}{change}")
    return "\n".join(lines)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=VALUE")
    return name, value


def _bucket(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give HEIGHTxWIDTH, as in 800x1344") from None
    return height, width


def main() -> None:
    """Reads the command line; prints a report or a comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs/atss_r50_fpn_1x.py"))
    parser.add_argument("--set", nargs="+", default=["model.dtype=bfloat16"], metavar="G.F=VALUE")
    parser.add_argument("--topology", default="v5e:2x2", help="v5e:2x2, v6e:2x4, h100:8, cpu")
    parser.add_argument("--part", choices=tuple(aot_programs.PROGRAMS), default="train")
    parser.add_argument("--per-device", type=int, default=8, help="images")
    parser.add_argument("--bucket", type=_bucket, default=(800, 1344), help="HEIGHTxWIDTH, px")
    parser.add_argument("--num-classes", type=int, default=COCO_CLASSES)
    parser.add_argument("--compiler-option", type=_pair, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the figures")
    parser.add_argument("--save-hlo", type=Path, metavar="FILE")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for `configs`
    try:
        if options.diff:
            print(diff(*(json.loads(path.read_text()) for path in options.diff)))
            return
        report = measure(options)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(render(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
