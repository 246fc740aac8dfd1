"""A table of rows beside plain ATSS: after equally many steps, and after equally long training."""

import bisect
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import row_report
import table_rows
from table_rows import Row

HEADER = (
    *("row", "step / ATSS's", "AP", "sd", "seeds", "to ATSS, equal steps"),
    *("ATSS in equal time", "to ATSS, equal time"),
)
NOISE = 0.9
"""Of ATSS's cost: a step between this and 1 is taken as equal, as the measurement is no finer."""


class Point(NamedTuple):
    """What the base reached after a number of steps."""

    steps: float
    by_seed: dict[int, float]
    """AP in percent."""
    variance: float = 1.0
    """Of a seed's value, in variances of one run."""


def base_points(results: Sequence[Mapping[str, Any]]) -> list[Point]:
    """What plain ATSS reached in runs of each length, shortest first; each run counts once."""
    by_steps: dict[int, dict[int, float]] = {}
    for result in results:
        if result["run"] == table_rows.ATSS:
            of_seeds = by_steps.setdefault(result["steps"], {})
            of_seeds[result["seed"]] = 100 * result["metrics"]["AP"]
    return [Point(steps, by_seed) for steps, by_seed in sorted(by_steps.items())]


def at_steps(points: Sequence[Point], steps: float) -> Point | None:
    """Between two points on the line through them; None beyond the longest runs, or far below.

    A little below the shortest runs, within the noise of a step's cost, it is these.

    >>> at_steps([Point(500, {0: 7.0}), Point(1000, {0: 13.0})], 750)
    Point(steps=750, by_seed={0: 10.0}, variance=0.5)
    """
    after = bisect.bisect_left([point.steps for point in points], steps)
    if after == 0:
        return points[0] if steps >= NOISE * points[0].steps else None
    if after == len(points):
        return None
    low, high = points[after - 1], points[after]
    share = (steps - low.steps) / (high.steps - low.steps)
    common = low.by_seed.keys() & high.by_seed.keys()
    by_seed = {s: (1 - share) * low.by_seed[s] + share * high.by_seed[s] for s in sorted(common)}
    return Point(steps, by_seed, (1 - share) ** 2 + share**2)


def cost_name(row: Row, preset: str) -> str:
    """A row as `scripts/bench_recipes.py` names it: without test-time settings.

    >>> cost_name(table_rows.selected(["beyond"], ["DIoU loss"])[0], "mini")
    'mini:ablations+loss.box_loss=diou'
    """
    fields = [f"+{name}={value}" for name, value in row.trained]
    recipe = f"mini:{row.config}" if preset == "mini" else row.config
    return recipe + "".join(fields)


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
      results: of all rows.
      points: of the base.
      ratio: a step's cost over the base's; None where it is not measured.
      spread: of one run.
    """
    argument = "=".join(row.fields[0]) if row.fields else row.config.partition(":")[2]
    name = f"{row.name}, `{argument or row.config}`"
    cost = "not measured" if ratio is None else f"{ratio:.2f}"
    found = row_report.measured(row.run, row.test, results).by_seed
    if not found:
        return [name, cost, "not run", "–", "0", "–", "–", "–"]
    steps = next(r["steps"] for r in results if r["run"] == row.run)
    values = list(found.values())
    deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"

    def difference(to: Point | None) -> str:
        return "–" if to is None else row_report.difference(found, to.by_seed, spread, to.variance)

    equal_steps = next((point for point in points if point.steps == steps), None)
    ours = [name, cost, f"{statistics.fmean(values):.1f}", deviation, str(len(values))]
    first = [*ours, difference(equal_steps)]
    if ratio is None:
        return [*first, "–", "–"]
    equal = at_steps(points, ratio * steps)
    if equal is None or not equal.by_seed:
        is_over = ratio * steps > points[-1].steps
        bound, last = ("over", points[-1]) if is_over else ("below", points[0])
        return [*first, f"{bound} {statistics.fmean(last.by_seed.values()):.1f}", "–"]
    return [*first, f"{statistics.fmean(equal.by_seed.values()):.1f}", difference(equal)]


def markdown(
    rows: Sequence[Row],
    results: Sequence[dict[str, Any]],
    longer: Sequence[dict[str, Any]],
    costs: Mapping[str, float],
    preset: str,
) -> str:
    """The table as Markdown, the base first.

    Args:
      rows: as `table_rows.selected`.
      results: of all rows.
      longer: of plain ATSS, of greater lengths.
      costs: by recipe, as `row_results.read_costs`.
      preset: of the rows.

    Raises:
      ValueError: plain ATSS is not among the results, or not among the longer ones.
    """
    base = {result["steps"] for result in results if result["run"] == table_rows.ATSS}
    if not base:
        raise ValueError(f"--out has no run of plain ATSS ({table_rows.ATSS}), the base.")
    if not any(r["run"] == table_rows.ATSS and r["steps"] > max(base) for r in longer):
        raise ValueError(f"--longer: no run of plain ATSS of more than {max(base)} steps.")
    points, spread = base_points([*results, *longer]), row_report.pooled_spread(results)
    means = [f"{p.steps:.0f} steps: {statistics.fmean(p.by_seed.values()):.1f}" for p in points]
    lines = [
        f"Plain ATSS: {', '.join(means)}.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|" + "---:|" * (len(HEADER) - 1),
    ]
    for row in rows:
        if row.run == table_rows.ATSS and not row.test:
            continue
        row_cells = cells(row, results, points, costs.get(cost_name(row, preset)), spread)
        lines.append("| " + " | ".join(row_cells) + " |")
    if spread.freedom:
        lines += ["", row_report.of_intervals(spread)]
    return "\n".join(lines)
