"""Charts: lines over steps, recall or anything else, as PNG.

Every line chart of the package is drawn here, in one style: title, named axes, whole numbers where
an axis counts, the legend beside the plot. Nothing touches a device or matplotlib's global state.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from atss_jax.drawing.palette import LINE_COLORS
from atss_jax.files import write_whole

FEW_POINTS = 20
"""Lines of at most so many points show each."""

LOSSES = {
    "loss": "total",
    "loss_cls": "classification",
    "loss_box": "box",
    "loss_centerness": "centerness",
}
"""Field of `metrics.jsonl` -> its name in a chart."""

QUALITIES = ("AP", "AP50", "AP75")


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    x: np.ndarray
    y: np.ndarray
    is_noisy: bool = False
    """Many points are drawn faint, with their moving average on top."""


class Chart(NamedTuple):
    """A set of axes with its lines."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_max: float | None = None
    """Upper end of y; None: what the lines need. The lower end is 0."""
    x_counts: bool = False
    """Whole numbers on x only."""


def draw_charts(
    charts: Sequence[Chart], *, title: str = "", size: tuple[float, float] = (6.2, 4)
) -> bytes:
    """Charts side by side, as the bytes of a PNG file.

    Args:
      charts: at least one; lines without points are left out.
      title: above all.
      size: (width, height) of one chart, inches; a smaller one has larger letters on a page.
    """
    figure = Figure(figsize=(size[0] * len(charts), size[1]), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, chart in zip(np.atleast_1d(figure.subplots(1, len(charts))), charts, strict=True):
        _draw(axes, chart)
    if title:
        figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Axes, chart: Chart) -> None:
    for i, line in enumerate(chart.lines):
        if len(line.x) == 0:
            continue
        color = LINE_COLORS[i % len(LINE_COLORS)]
        marker = "o" if len(line.x) <= FEW_POINTS else ""
        y = line.y
        if line.is_noisy and not marker:
            axes.plot(line.x, y, color=color, linewidth=0.6, alpha=0.3)
            y = _smooth(y)
        axes.plot(
            line.x, y, color=color, label=line.name, linewidth=1.6, marker=marker, markersize=3.5
        )
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(alpha=0.3)
    if chart.x_counts:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    handles, names = axes.get_legend_handles_labels()
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=chart.y_max)
    if handles:
        axes.legend(
            handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8
        )
    else:
        axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", transform=axes.transAxes)


def run_charts(rows: Sequence[Mapping[str, Any]]) -> tuple[Chart, Chart]:
    """The losses and the AP of a run.

    Args:
      rows: of `metrics.jsonl`: "step" with "loss", "loss_cls", ... or with "eval/AP", ...
    """
    losses = [Line(text, *series(rows, name), is_noisy=True) for name, text in LOSSES.items()]
    qualities = []
    for name in QUALITIES:
        steps, values = series(rows, f"eval/{name}")
        qualities.append(Line(_with_last(name, values), steps, values))
    return (
        Chart("training losses", "step", "loss", losses, x_counts=True),
        Chart("validation", "step", "average precision", qualities, y_max=1, x_counts=True),
    )


def plot_curves(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Plots the losses and the AP of a run into a PNG file.

    Args:
      rows: see `run_charts`.
      path: of the PNG file.
      title: above the plots.
    """
    write_whole(path, draw_charts(run_charts(rows), title=title))


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Plots total loss and AP of several runs into a PNG file, a colour for each.

    Args:
      runs: name -> rows of its `metrics.jsonl`, see `run_charts`.
      path: of the PNG file.
      title: above the plots.
    """
    losses, qualities = [], []
    for name, rows in runs.items():
        losses.append(Line(name, *series(rows, "loss"), is_noisy=True))
        steps, values = series(rows, "eval/AP")
        qualities.append(Line(_with_last(name, values), steps, values))
    charts = (
        Chart("training loss", "step", "loss", losses, x_counts=True),
        Chart("validation", "step", "average precision", qualities, y_max=1, x_counts=True),
    )
    write_whole(path, draw_charts(charts, title=title))


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a field, from the rows that have it."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def _with_last(name: str, values: np.ndarray) -> str:
    return f"{name}, last {values[-1]:.3f}" if len(values) else name


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over about a fiftieth of the curve."""
    reach = max(1, len(values) // 100)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
