"""Curves of runs from their `metrics.jsonl`: losses and AP as PNG files.

Nothing here touches a device or matplotlib's global state.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_curves(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Plots the losses and the AP of a run into a PNG file.

    Args:
      rows: of `metrics.jsonl`: "step" with "loss", "loss_cls", ... or with "eval/AP", ...
      path: of the PNG file.
      title: above the plots.
    """
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    for name, text in (
        ("loss", "total"),
        ("loss_cls", "classification"),
        ("loss_box", "box"),
        ("loss_centerness", "centerness"),
    ):
        steps, values = _series(rows, name)
        if len(steps) == 0:
            continue
        (line,) = losses.plot(steps, values, linewidth=0.6, alpha=0.3)
        losses.plot(steps, _smooth(values), color=line.get_color(), label=text, linewidth=1.6)
    losses.set(title="training losses", xlabel="step", ylabel="loss")
    for name in ("AP", "AP50", "AP75"):
        steps, values = _series(rows, f"eval/{name}")
        if len(steps) == 0:
            continue
        label = f"{name}, last {values[-1]:.3f}"
        quality.plot(steps, values, marker="o", markersize=3.5, label=label)
    quality.set(title="validation", xlabel="step", ylabel="average precision", ylim=(0, 1))
    _finish(figure, losses, quality, path, title)


def _finish(figure: Figure, losses: Any, quality: Any, path: str | os.PathLike, title: str) -> None:
    """Grids, legends and title; writes the file."""
    for axes in (losses, quality):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", transform=axes.transAxes)
    losses.set_ylim(bottom=0)
    if title:
        figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    epath.Path(path).write_bytes(buffer.getvalue())


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Plots total loss and AP of several runs into a PNG file, a colour for each.

    Args:
      runs: name -> rows of its `metrics.jsonl`, see `plot_curves`.
      path: of the PNG file.
      title: above the plots.
    """
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    for index, (name, rows) in enumerate(runs.items()):
        color = f"C{index % 10}"
        steps, values = _series(rows, "loss")
        if len(steps):
            losses.plot(steps, values, color=color, linewidth=0.6, alpha=0.2)
            losses.plot(steps, _smooth(values), color=color, label=name, linewidth=1.6)
        steps, values = _series(rows, "eval/AP")
        if len(steps):
            label = f"{name}, last {values[-1]:.3f}"
            quality.plot(steps, values, color=color, marker="o", markersize=3.5, label=label)
    losses.set(title="training loss", xlabel="step", ylabel="loss")
    quality.set(title="validation", xlabel="step", ylabel="AP", ylim=(0, 1))
    _finish(figure, losses, quality, path, title)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    return steps, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average over about a fiftieth of the curve."""
    reach = max(1, len(values) // 100)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
