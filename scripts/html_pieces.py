"""Pieces of a self-contained HTML page: tables, line plots as SVG, thumbnails."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from atss_jax.drawing import visualize

COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2937}
body{max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #e5e7eb}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e5e7eb}
th:first-child,td:first-child{text-align:left}
.row{display:flex;flex-wrap:wrap;gap:1.2rem}.note{color:#6b7280;font-size:.88rem}
figure{margin:0;width:236px}figure img{width:100%;border-radius:4px}
figcaption{font-size:.8rem;color:#4b5563}svg{background:#fafafa;border-radius:4px}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The text of a page.

    Args:
      title: plain text.
      parts: HTML, in order.
    """
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def percent(value: float) -> str:
    """A metric in percent, or a dash where there was nothing to measure."""
    return "–" if value < 0 else f"{100 * value:.1f}"


def plot(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A line plot as SVG with a legend.

    Args:
      series: name, x and y of each line.
      title: above it.
      x_label: below it.
      y_range: limits of y; those of the values when not given.
    """
    width, height, left, bottom, top = 500, 300, 52, 40, 30
    drawn = [(n, np.asarray(x, float), np.asarray(y, float)) for n, x, y in series if len(x)]
    if not drawn:
        return f"<p>{html.escape(title)}: no data.</p>"
    x_low, x_high = min(x.min() for _, x, _ in drawn), max(x.max() for _, x, _ in drawn)
    y_low, y_high = y_range or (0.0, max(float(np.quantile(y, 0.995)) for _, _, y in drawn) * 1.05)
    x_span, y_span = max(x_high - x_low, 1e-9), max(y_high - y_low, 1e-9)

    def place(x, y):
        return (
            left + (x - x_low) / x_span * (width - left - 12),
            height
            - bottom
            - (np.clip(y, y_low, y_high) - y_low) / y_span * (height - bottom - top),
        )

    parts = [f'<text x="{left}" y="18" font-weight="600">{html.escape(title)}</text>']
    for step in range(6):
        value = y_low + y_span * step / 5
        y = place(x_low, value)[1]
        parts.append(f'<line x1="{left}" x2="{width - 12}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>')
        value = x_low + x_span * step / 5
        x = place(value, y_low)[0]
        parts.append(f'<text x="{x}" y="{height - 22}" text-anchor="middle">{value:.4g}</text>')
    middle = (left + width) / 2
    parts.append(f'<text x="{middle}" y="{height - 5}" text-anchor="middle">{x_label}</text>')
    for i, (name, x, y) in enumerate(drawn):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*place(x, y), strict=True))
        color = COLORS[i % len(COLORS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(x) <= 20:  # a few evaluations: show each
            marks = zip(*place(x, y), strict=True)
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{color}"/>' for a, b in marks]
        label = f'<tspan fill="{color}">{html.escape(name)}</tspan>'
        parts.append(
            f'<text x="{width - 16}" y="{top + 14 + 15 * i}" text-anchor="end">{label}</text>'
        )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui" font-size="11">{"".join(parts)}</svg>'
    )


def thumbnail(image: np.ndarray, box: np.ndarray, caption: str, drawn: list) -> str:
    """A crop around a box, with a caption.

    Args:
      image: uint8 [H, W, 3], RGB.
      box: (x1, y1, x2, y2) in pixels; the crop shows twice its longer side.
      caption: plain text below.
      drawn: [(boxes [N, 4], colour)], drawn into the crop.
    """
    side = max(float((box[2:] - box[:2]).max()) * 2, 64)
    low = np.clip((box[:2] + box[2:]) / 2 - side / 2, 0, None).astype(int)
    crop = image[low[1] : low[1] + int(side), low[0] : low[0] + int(side)]
    factor = 236 / max(crop.shape[:2])
    crop = cv2.resize(crop, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    for boxes, color in drawn:
        shifted = (boxes - np.tile(low, 2)) * factor
        crop = visualize.draw_boxes(crop, shifted, color=color, min_short_side=1)
    encoded = cv2.imencode(".jpg", crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
