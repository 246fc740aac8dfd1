"""A matrix of shares as a coloured map, as PNG."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_heat_map(
    counts: np.ndarray,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    row_label: str,
    column_label: str,
) -> bytes:
    """Each row as shares of its sum, with the counts in the cells, as the bytes of a PNG file.

    Args:
      counts: [R, C], not negative.
      row_names: of the R rows.
      column_names: of the C columns.
      row_label: what rows are.
      column_label: what columns are.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows, columns = counts.shape
    size = 2.2 + 0.75 * columns, 1.6 + 0.5 * rows
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(columns), column_names, rotation=45 if columns > 4 else 0)
    axes.set_yticks(range(rows), row_names)
    axes.set(xlabel=column_label, ylabel=row_label, title="share of each row (and count)")
    for row, column in np.ndindex(rows, columns):
        if counts[row, column]:
            color = "white" if shares[row, column] > 0.55 else "black"
            text = f"{shares[row, column]:.2f}\n({counts[row, column]})"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
