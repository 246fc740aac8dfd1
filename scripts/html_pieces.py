"""Pieces of a self-contained HTML page: tables, charts, thumbnails."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from atss_jax.drawing import visualize

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2937}
body{max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #e5e7eb}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e5e7eb}
th:first-child,td:first-child{text-align:left}
.row{display:flex;flex-wrap:wrap;gap:1.2rem}.note{color:#6b7280;font-size:.88rem}
figure{margin:0;width:236px}figure img{width:100%;border-radius:4px}
figcaption{font-size:.8rem;color:#4b5563}img.chart{max-width:100%}
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


def chart(png: bytes, text: str) -> str:
    """A chart of `drawing.curves` as an HTML image.

    Args:
      png: content of the file.
      text: what it shows, for those who cannot see it.
    """
    return (
        f'<img class="chart" src="data:image/png;base64,{base64.b64encode(png).decode()}" '
        f'alt="{html.escape(text)}">'
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
