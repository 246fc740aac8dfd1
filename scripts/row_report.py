"""Tables of finished rows: the paper's AP, ours with spread, the difference to the base, time.

Runs of one seed start from the same numbers and see the same images, so rows are compared seed by
seed: what a seed does to all of them alike is no part of the uncertainty of a difference.
"""

import html as html_text
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import table_rows
from atss_jax import files
from atss_jax.drawing.html_page import page, table
from table_rows import Row

HEADER = ("row", "paper AP", "paper, to base", "ours", "sd", "seeds", "ours, to base", "minutes")


class Measured(NamedTuple):
    """What the runs of a row reached."""

    by_seed: dict[int, float]
    """AP in percent."""
    minutes: float
    """Of the whole job, mean; NaN without one."""


class Spread(NamedTuple):
    """Standard deviation of one run around what its row and its seed have, the same for all."""

    deviation: float
    """In percent AP; NaN where no two rows have two seeds in common."""
    freedom: int
    """Degrees of freedom: runs, less the means of rows and seeds."""

    def interval(self, seeds: int, variances: float = 2.0) -> float:
        """Half of the 95 % confidence interval of a difference.

        Args:
          seeds: that both sides have.
          variances: of one seed's difference, in variances of one run.
        """
        if not self.freedom:
            return math.nan
        return t_quantile(self.freedom) * self.deviation * math.sqrt(variances / seeds)


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
    word = " ".join(test)
    mine = [r for r in results if r["run"] == run and (not test or word in r["evaluations"])]
    found = {
        r["seed"]: 100 * (r["evaluations"][word] if test else r["metrics"])["AP"] for r in mine
    }
    minutes = statistics.fmean(r["all_seconds"] for r in mine) / 60 if mine else math.nan
    return Measured(found, minutes)


def pooled_spread(results: Sequence[dict[str, Any]]) -> Spread:
    """The spread of all runs together, by least squares: a row's three seeds alone say too little.

    Each run is taken as the sum of what its row and its seed contribute, and of a rest, whose
    standard deviation this is.
    """
    runs = sorted({r["run"] for r in results})
    seeds = sorted({r["seed"] for r in results})
    design = np.zeros((len(results), len(runs) + len(seeds)))
    for place, result in enumerate(results):
        design[place, runs.index(result["run"])] = 1
        design[place, len(runs) + seeds.index(result["seed"])] = 1
    values = np.array([100 * r["metrics"]["AP"] for r in results])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(results) - int(rank)
    if not freedom:
        return Spread(math.nan, 0)
    rest = values - design @ solution
    return Spread(math.sqrt(float(rest @ rest) / freedom), freedom)


def difference(
    own: dict[int, float], theirs: dict[int, float], spread: Spread, variance: float = 1.0
) -> str:
    """Mean difference over the seeds that both have, with its interval; "–" without one.

    Args:
      own: AP by seed.
      theirs: likewise.
      spread: of one run.
      variance: of one of theirs, in variances of one run.
    """
    common = sorted(own.keys() & theirs.keys())
    if not common:
        return "–"
    mean = statistics.fmean(own[seed] - theirs[seed] for seed in common)
    return with_interval(signed(mean), spread.interval(len(common), 1 + variance))


def cells(
    row: Row, results: Sequence[dict[str, Any]], spread: Spread, failed: Sequence[str] = ()
) -> list[str]:
    """A row's cells, under `HEADER`.

    Args:
      row: of a table.
      results: of all rows.
      spread: of one run.
      failed: names of jobs.
    """
    by_config = {other.config: other for other in table_rows.ROWS if not other.fields}
    base = by_config[row.base]
    own = measured(row.run, row.test, results)
    is_base = row.run == base.run and not row.test
    paper = "not at hand" if row.paper_ap is None else f"{row.paper_ap:.1f}"
    known = row.paper_ap is not None and base.paper_ap is not None and not is_base
    paper_change = signed(row.paper_ap - base.paper_ap) if known else "–"  # type: ignore[operator]
    broken = sum(f"-{row.run}-seed" in name for name in failed)
    seeds = f"{len(own.by_seed)} ({broken} failed)" if broken else str(len(own.by_seed))
    if not own.by_seed:
        return [row.name, paper, paper_change, "failed" if broken else "not run", "–", seeds, *"––"]
    mine = list(own.by_seed.values())
    deviation = f"{statistics.stdev(mine):.1f}" if len(mine) > 1 else "–"
    theirs = measured(base.run, (), results).by_seed
    change = "–" if is_base else difference(own.by_seed, theirs, spread)
    ours = f"{statistics.fmean(mine):.1f}"
    return [row.name, paper, paper_change, ours, deviation, seeds, change, f"{own.minutes:.1f}"]


def signed(value: float) -> str:
    """A difference with its sign, "+0.0" also where it is a little below zero."""
    return f"{round(value, 1) + 0.0:+.1f}"


def with_interval(value: str, half: float) -> str:
    """A value with half of its interval, if that is known."""
    return value if math.isnan(half) else f"{value} ± {half:.1f}"


def explanation(results: Sequence[dict[str, Any]], failed: Sequence[str] = ()) -> str:
    """What the numbers are, in a sentence or two."""
    spread = pooled_spread(results)
    devices = ", ".join(sorted({r["device"] for r in results}))
    text = f"{len(results)} runs on {devices}" + (f", {len(failed)} failed" if failed else "")
    text += ". AP in percent, sd over the seeds; minutes with start and evaluation."
    return f"{text} {of_intervals(spread)}" if spread.freedom else text


def of_intervals(spread: Spread) -> str:
    """What ± means."""
    return (
        "± is a 95 % confidence interval of the difference between runs of the same seeds, from "
        f"the spread that each row's and each seed's mean leave: {spread.deviation:.2f} for one "
        f"run, taken as the same for all rows ({spread.freedom} degrees of freedom)."
    )


def markdown(
    rows: Sequence[Row], results: Sequence[dict[str, Any]], failed: Sequence[str] = ()
) -> str:
    """The tables of rows as Markdown; `failed` are names of jobs."""
    spread, lines = pooled_spread(results), [explanation(results, failed)]
    for name in dict.fromkeys(row.table for row in rows):
        lines += ["", f"**Table {name}**", "", "| " + " | ".join(HEADER) + " |"]
        lines.append("|" + "---|" * len(HEADER))
        lines += [
            "| " + " | ".join(cells(row, results, spread, failed)) + " |"
            for row in rows
            if row.table == name
        ]
    return "\n".join(lines)


def html(rows: Sequence[Row], results: Sequence[dict[str, Any]], failed: Sequence[str] = ()) -> str:
    """The tables of rows as a page; `failed` are names of jobs."""
    spread, text = pooled_spread(results), html_text.escape(explanation(results, failed))
    parts = ["<h1>Rows of the paper</h1>", f"<p>{text}</p>"]
    for name in dict.fromkeys(row.table for row in rows):
        mine = [cells(row, results, spread, failed) for row in rows if row.table == name]
        parts += [f"<h2>Table {name}</h2>", table(HEADER, mine)]
    return page("Rows of the paper", parts)


def with_tables(path: Path, text: str, preset: str) -> str:
    """A page with other tables between its two lines.

    Args:
      path: of the page.
      text: the new tables.
      preset: named by the lines, "<!-- rows of mini -->" and "<!-- end of mini -->".

    Raises:
      ValueError: no such page, or it lacks the lines.
    """
    start, end = f"<!-- rows of {preset} -->", f"<!-- end of {preset} -->"
    old = path.read_text() if path.is_file() else ""
    before, found, rest = old.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed or old.count(start) != 1 or old.count(end) != 1:
        raise ValueError(f"--into {path}: needs the lines {start} and {end}, each once, in order.")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def write_into(path: Path, text: str, preset: str) -> None:
    """Replaces what stands in a page between two lines, see `with_tables`."""
    files.write_whole(path, with_tables(path, text, preset))
