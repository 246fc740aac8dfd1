r"""What XLA's compilers say of a recipe on TPUs and GPUs that are not here.

    python scripts/aot_report.py --topology=v5e:2x2 --per-device=8          # the training step
    python scripts/aot_report.py --topology=v5e:2x2 --part=stem             # a part, in seconds
    python scripts/aot_report.py --topology=h100:8 --config=configs/fcos_r50_fpn_1x.py \
      --set model.dtype=float32 run.fsdp=True --json=report.json
    python scripts/aot_report.py --diff before.json after.json

What `atss describe --topology=...` prints, with a bucket and a batch of your choice, as JSON, and
compared with another. Nothing runs on a device: see `atss_jax/run/ahead/figures.py` on what is
exact and what is a model.

A whole training step takes 5 to 17 minutes of CPU time to compile for a TPU, a part some seconds.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from atss_jax.run.ahead import topology
from bench_train import read_recipe

ROOT = Path(__file__).resolve().parents[1]
COCO_CLASSES = 80


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the command line's program.

    Raises:
      UserError: topology, compiler, recipe or compiler option is wrong or missing.
    """
    topology.prepare_environment(options.topology)
    from atss_jax.run.ahead import figures, programs  # they import JAX
    from atss_jax.run.recipe_io import recipe_from_mapping

    mesh = topology.make_mesh(options.topology)
    values = read_recipe(options.config, options.set)
    values["data"]["global_batch"] = options.per_device * mesh.size
    values["data"]["buckets"] = (options.bucket,)
    values["eval"]["batch_size"] = options.per_device * mesh.size
    config = recipe_from_mapping(values)
    case = programs.Case(config, mesh, options.bucket, options.per_device, options.num_classes)
    found = figures.measure(
        case,
        options.topology,
        options.part,
        compiler_options=dict(options.compiler_option) if options.compiler_option else None,
        hlo_file=options.save_hlo,
    )
    return found | {"config": options.config, "set": options.set}


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
    parser.add_argument("--part", default="train", help="train, predict, stem, losses, ...")
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
        from atss_jax.run.ahead.report import render
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(render(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
