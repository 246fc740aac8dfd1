"""Text for people of the figures of a program, see `figures.measure`."""

from typing import Any


def render(report: dict[str, Any]) -> str:
    """A report for people."""
    got = report
    used = ", ".join(f"{name} {version}" for name, version in got["versions"].items())
    lines = [
        f"{got['part']} on {got['topology']} ({got['devices']} devices), {got['per_device']} "
        f"images of {got['bucket'][0]}x{got['bucket'][1]} a device, {got['dtype']}"
        + (", FSDP" if got["fsdp"] else ""),
        f"a compiler's estimates: compiled, not run; {used}; {got['date']}",
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
