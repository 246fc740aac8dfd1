"""Tables of finished rows: the paper's AP, ours with spread, the difference to the base, time."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import table_rows
from atss_jax.drawing.html_page import page, table
from table_rows import Row

HEADER = ("row", "paper AP", "paper, to base", "ours", "seeds", "ours, to base", "minutes")


class Measured(NamedTuple):
    """What the runs of a row reached."""

    by_seed: dict[int, float]
    """AP in percent."""
    minutes: float
    """Of the whole job, mean; NaN without one."""


class Spread(NamedTuple):
    """Standard deviation of one run, taken as the same for all rows."""

    deviation: float
    """In percent AP; NaN where no row has two seeds."""
    freedom: int
    """Degrees of freedom: the seeds of each row but one, added up."""

    def interval(self, runs: float) -> float:
        """Half of the 95 % confidence interval of a mean.

        Args:
          runs: number of runs; of a difference, the harmonic one: 1 / (1/n + 1/m).
        """
        if not self.freedom:
            return math.nan
        return t_quantile(self.freedom) * self.deviation / math.sqrt(runs)


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t distribution.

    By bisection on the exact distribution function, an integral of (1 + x^2 / v)^-((v + 1) / 2).

    >>> round(t_quantile(2), 2), round(t_quantile(30), 2)
    (4.3, 2.04)
    """
    v = float(freedom)
    constant = math.exp(math.lgamma((v + 1) / 2) - math.lgamma(v / 2)) / math.sqrt(v * math.pi)

    def above_zero(t: float) -> float:
        n = 400  # Simpson's rule
        values = (
            (1 if i in (0, n) else 4 if i % 2 else 2) * (1 + (t * i / n) ** 2 / v) ** (-(v + 1) / 2)
            for i in range(n + 1)
        )
        return constant * t / n / 3 * sum(values)

    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if above_zero(middle) < 0.475 else (low, middle)
    return low


def measured(run: str, test: tuple[str, ...], results: Sequence[dict[str, Any]]) -> Measured:
    """What a run reached, by the evaluation with these flags."""
    mine = [r for r in results if r["run"] == run]
    word = " ".join(test)
    found = {
        r["seed"]: 100 * (r["evaluations"][word] if test else r["metrics"])["AP"] for r in mine
    }
    minutes = statistics.fmean(r["all_seconds"] for r in mine) / 60 if mine else math.nan
    return Measured(found, minutes)


def pooled_spread(results: Sequence[dict[str, Any]]) -> Spread:
    """The spread over seeds of all runs together: three seeds of one row say too little."""
    squares, freedom = 0.0, 0
    for run in {r["run"] for r in results}:
        values = list(measured(run, (), results).by_seed.values())
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            freedom += len(values) - 1
    return Spread(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def cells(row: Row, results: Sequence[dict[str, Any]], spread: Spread) -> list[str]:
    """A row's cells, under `HEADER`."""
    by_config = {other.config: other for other in table_rows.ROWS if not other.fields}
    base = by_config[row.base]
    own = measured(row.run, row.test, results)
    theirs = measured(base.run, (), results)
    is_base = row.run == base.run and not row.test
    paper = "not at hand" if row.paper_ap is None else f"{row.paper_ap:.1f}"
    known = row.paper_ap is not None and base.paper_ap is not None and not is_base
    paper_change = signed(row.paper_ap - base.paper_ap) if known else "–"  # type: ignore[operator]
    if not own.by_seed:
        return [row.name, paper, paper_change, "not run", "0", "–", "–"]
    mine = list(own.by_seed.values())
    ours = with_interval(f"{statistics.fmean(mine):.1f}", spread.interval(len(mine)))
    change = "–"
    if theirs.by_seed and not is_base:
        other = list(theirs.by_seed.values())
        runs = 1 / (1 / len(mine) + 1 / len(other))
        difference = statistics.fmean(mine) - statistics.fmean(other)
        change = with_interval(signed(difference), spread.interval(runs))
    return [row.name, paper, paper_change, ours, str(len(mine)), change, f"{own.minutes:.1f}"]


def signed(difference: float) -> str:
    """A difference with its sign, "+0.0" also where it is a little below zero."""
    return f"{round(difference, 1) + 0.0:+.1f}"


def with_interval(value: str, half: float) -> str:
    """A value with half of its interval, if that is known."""
    return value if math.isnan(half) else f"{value} ± {half:.1f}"


def explanation(results: Sequence[dict[str, Any]]) -> str:
    """What the numbers are, in a sentence or two."""
    spread = pooled_spread(results)
    devices = ", ".join(sorted({r["device"] for r in results}))
    text = f"{len(results)} runs on {devices}. AP in percent; minutes with start and evaluation."
    return f"{text} {of_intervals(spread)}" if spread.freedom else text


def of_intervals(spread: Spread) -> str:
    """What ± means."""
    return (
        f"± is a 95 % confidence interval from the spread over seeds, {spread.deviation:.2f} for "
        f"one run, taken as the same for all rows ({spread.freedom} degrees of freedom)."
    )


def markdown(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> str:
    """The tables of rows as Markdown."""
    spread, lines = pooled_spread(results), [explanation(results)]
    for name in dict.fromkeys(row.table for row in rows):
        lines += ["", f"**Table {name}**", "", "| " + " | ".join(HEADER) + " |"]
        lines.append("|" + "---|" * len(HEADER))
        lines += [
            "| " + " | ".join(cells(row, results, spread)) + " |"
            for row in rows
            if row.table == name
        ]
    return "\n".join(lines)


def html(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> str:
    """The tables of rows as a page."""
    spread = pooled_spread(results)
    parts = ["<h1>Rows of the paper</h1>", f"<p>{explanation(results)}</p>"]
    for name in dict.fromkeys(row.table for row in rows):
        mine = [cells(row, results, spread) for row in rows if row.table == name]
        parts += [f"<h2>Table {name}</h2>", table(HEADER, mine)]
    return page("Rows of the paper", parts)


def write_into(path: Path, text: str, preset: str) -> None:
    """Replaces what stands in a page between two lines.

    Args:
      path: the page.
      text: the new tables.
      preset: named by the lines, "<!-- rows of mini -->" and "<!-- end of mini -->".

    Raises:
      ValueError: the page lacks them.
    """
    start, end = f"<!-- rows of {preset} -->\n", f"<!-- end of {preset} -->\n"
    old = path.read_text()
    if any(old.count(mark) != 1 for mark in (start, end)):
        raise ValueError(f"--into {path}: needs the lines {start!r} and {end!r}, each once.")
    before, after = old.partition(start)[0], old.partition(end)[2]
    path.write_text(f"{before}{start}\n{text}\n\n{end}{after}")


def write_json(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes all results into one file that `report --out` reads."""
    path.write_text(json.dumps({"results": list(results)}, indent=1, sort_keys=True) + "\n")
