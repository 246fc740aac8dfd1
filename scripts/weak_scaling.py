"""Weak scaling on paper: a modelled step, and what it exchanges over links of published speed.

    python scripts/aot_report.py --topology=v5e:2x2 --per-device=8 --json=report.json
    python scripts/weak_scaling.py report.json --chips 1 8 256 1024

Every chip keeps its batch. An array goes around the chips once to gather it and once to scatter
its sum: an all-gather is one pass over the bytes of its result, a reduce-scatter one over those of
its operand (`devices` of the report times its result), an all-reduce is both. So sharded parameters
(run.fsdp) count as what gathers them and scatters their gradients. Other collectives are not
counted.

The exchange follows the step and overlaps with nothing, as in the compiled program, which is
pessimistic. All links of a chip are busy the whole time, which is optimistic, most of all in small
slices, whose chips at the border have fewer links. Across slices every chip exchanges its share of
the array over the network of the data centre. Latency, stragglers and the input are not in it.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple


class Links(NamedTuple):
    """Published speeds of a kind of TPU, of one chip and one direction."""

    ici: float
    """Bytes/s of all links to other chips of the slice together."""
    dcn: float
    """Bytes/s to other slices, over the network of the data centre."""
    slice_chips: int
    """Chips of the largest slice."""


LINKS = {
    "v5e": Links(400e9 / 2, 6.4e12 / 8 / 256, 256),
    "v5p": Links(1200e9 / 2, 50e9 / 8, 6144),
}
"""docs.cloud.google.com/tpu/docs/v5e: 400 GB/s of links per chip, both directions; 6.4 Tbit/s of
network per pod of 256. docs.cloud.google.com/tpu/docs/v5p: 1,200 GB/s, 50 Gbit/s per chip, jobs of
up to 6,144 chips in a slice."""


def pass_ms(chips: int, num_bytes: float, links: Links) -> float:
    """Milliseconds in which an array goes around all chips once.

    Within a slice a chip sends (n - 1) / n of the array; its n-th goes around the slices likewise.

    Args:
      chips: all of them; whole slices where there are several.
      num_bytes: of the whole array.
      links: of the chips.
    """
    inside = min(chips, links.slice_chips)
    slices = -(-chips // links.slice_chips)
    seconds = (inside - 1) / inside * num_bytes / links.ici
    seconds += (slices - 1) / slices * num_bytes / inside / links.dcn
    return 1e3 * seconds


def exchanged_bytes(report: dict[str, Any]) -> float:
    """Bytes of whole arrays that go around in a step, each as often as it does."""
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": report["devices"]}
    return sum(passes.get(c["kind"], 0) * c["mib"] * 2**20 for c in report["collectives"])


def table(report: dict[str, Any], chips: list[int]) -> list[dict[str, float]]:
    """A row for each number of chips.

    Args:
      report: of a training step for TPUs, see `run.ahead.figures.measure`.
      chips: how many.

    Raises:
      ValueError: the report is of a part of the step, has no modelled time, or is of a chip without
        published speeds.
    """
    kind = report["topology"].partition(":")[0]
    step = report["modelled_ms"]
    if report["part"] != "train" or kind not in LINKS or not step:
        raise ValueError(
            f"part {report['part']} on {report['topology']}: give a report of a whole training "
            f"step (--part=train) on {' or '.join(LINKS)}."
        )
    num_bytes = exchanged_bytes(report)
    rows = []
    for count in chips:
        exchange = pass_ms(count, num_bytes, LINKS[kind])
        rows.append(
            {
                "chips": count,
                "global_batch": count * report["per_device"],
                "exchange_ms": exchange,
                "step_ms": step + exchange,
                "images_per_s": 1e3 * count * report["per_device"] / (step + exchange),
                "efficiency": step / (step + exchange),
            }
        )
    return rows


def main() -> None:
    """Reads the command line; prints a line of JSON for each number of chips."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JSON of scripts/aot_report.py")
    parser.add_argument("--chips", type=int, nargs="+", default=[1, 4, 8, 64, 256, 1024, 4096])
    options = parser.parse_args()
    if min(options.chips) < 1:
        parser.error("all numbers must be 1 or more")
    try:
        rows = table(json.loads(options.report.read_text()), options.chips)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
