"""A table of rows beside plain ATSS: after equally many steps, and after equally long training."""

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import row_report
import table_rows
from table_rows import Row

HEADER = (
    *("row", "step / ATSS's", "AP", "seeds", "to ATSS, equal steps"),
    *("ATSS in equal time", "to ATSS, equal time"),
)


class Point(NamedTuple):
    """AP of the base after a number of steps."""

    steps: float
    ap: float
    """Mean, percent."""
    runs: float
    """As many runs as have a mean of the same variance."""


def base_points(results: Sequence[Mapping[str, Any]]) -> list[Point]:
    """What plain ATSS reached in runs of each length, shortest first."""
    by_steps: dict[int, list[float]] = {}
    for result in results:
        if result["run"] == table_rows.ATSS:
            by_steps.setdefault(result["steps"], []).append(100 * result["metrics"]["AP"])
    return [Point(n, statistics.fmean(ap), len(ap)) for n, ap in sorted(by_steps.items())]


def at_steps(points: Sequence[Point], steps: float) -> Point | None:
    """Between two points on the line through them; None beyond the longest runs.

    Below the shortest it is that point: a step that costs a little less, within the noise of its
    measurement, is taken as equal.

    >>> at_steps([Point(500, 7.0, 3), Point(1000, 13.0, 3)], 750)
    Point(steps=750, ap=10.0, runs=6.0)
    """
    after = bisect.bisect_left([point.steps for point in points], steps)
    if after == 0:
        return points[0]
    if after == len(points):
        return None
    low, high = points[after - 1], points[after]
    share = (steps - low.steps) / (high.steps - low.steps)
    runs = 1 / ((1 - share) ** 2 / low.runs + share**2 / high.runs)
    return Point(steps, (1 - share) * low.ap + share * high.ap, runs)


def cost_name(row: Row, preset: str) -> str:
    """A row as `scripts/bench_recipes.py` names it: without test-time settings.

    >>> cost_name(table_rows.selected(["beyond"], ["DIoU loss"])[0], "mini")
    'mini:ablations+loss.box_loss=diou'
    """
    fields = [f"+{name}={value}" for name, value in row.fields if not name.startswith("eval.")]
    return f"mini:{row.config}{''.join(fields)}" if preset == "mini" else row.config


def cells(
    row: Row,
    results: Sequence[dict[str, Any]],
    points: Sequence[Point],
    ratio: float | None,
    spread: row_report.Spread,
) -> list[str]:
    """A row's cells, under `HEADER`.

    Args:
      row: of a recipe other than the base.
      results: of all rows, of one length.
      points: of the base, the first as long as the rows.
      ratio: a step's cost over the base's; None where it is not measured.
      spread: of one run.
    """
    argument = row.config.partition(":")[2]
    name = f"{row.name}, `{argument or '='.join(row.fields[0])}`"
    cost = "not measured" if ratio is None else f"{ratio:.2f}"
    found = list(row_report.measured(row.run, row.test, results).by_seed.values())
    if not found:
        return [name, cost, "not run", "0", "–", "–", "–"]
    mean = statistics.fmean(found)

    def difference(to: Point) -> str:
        runs = 1 / (1 / len(found) + 1 / to.runs)
        return row_report.with_interval(row_report.signed(mean - to.ap), spread.interval(runs))

    ours = row_report.with_interval(f"{mean:.1f}", spread.interval(len(found)))
    first = [name, cost, ours, str(len(found)), difference(points[0])]
    if ratio is None:
        return [*first, "–", "–"]
    equal = at_steps(points, ratio * points[0].steps)
    if equal is None:
        last = points[-1].ap
        return [*first, f"over {last:.1f}", f"below {row_report.signed(mean - last)}"]
    return [*first, f"{equal.ap:.1f}", difference(equal)]


def markdown(
    rows: Sequence[Row],
    results: Sequence[dict[str, Any]],
    longer: Sequence[dict[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    preset: str,
) -> str:
    """The table as Markdown, the base first.

    Args:
      rows: as `table_rows.selected`.
      results: of all rows, of one length.
      longer: of plain ATSS, of greater lengths.
      costs: "rows" of `scripts/bench_recipes.py`.
      preset: of the rows.

    Raises:
      ValueError: plain ATSS is not among the results.
    """
    length = {result["steps"] for result in results if result["run"] == table_rows.ATSS}
    points = base_points([*results, *longer])
    if len(length) != 1 or points[0].steps not in length:
        raise ValueError("equal-time: --out needs runs of plain ATSS, --longer longer ones.")
    spread = row_report.pooled_spread(results)
    base = [
        f"{point.steps:.0f} steps: "
        + row_report.with_interval(f"{point.ap:.1f}", spread.interval(point.runs))
        for point in points
    ]
    lines = [
        f"Plain ATSS: {'; '.join(base)}.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|" + "---:|" * (len(HEADER) - 1),
    ]
    for row in rows:
        if row.run == table_rows.ATSS and not row.test:
            continue
        ratio = costs.get(cost_name(row, preset), {}).get("ratio")
        row_cells = cells(row, results, points, ratio, spread)
        lines.append("| " + " | ".join(row_cells) + " |")
    if not math.isnan(spread.deviation):
        lines += ["", row_report.of_intervals(spread)]
    return "\n".join(lines)
