"""Pieces of a self-contained HTML page: tables, charts, pictures."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from atss_jax.drawing import visualize
from atss_jax.drawing.palette import Color

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2937;background:#fff}
body{max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #e5e7eb}
.scroll{overflow-x:auto;margin:.6rem 0;background-repeat:no-repeat}
.scroll{background-image:linear-gradient(to right,#fff 30%,#fff0),
linear-gradient(to left,#fff 30%,#fff0),radial-gradient(farthest-side at 0 50%,#0004,#0000),
radial-gradient(farthest-side at 100% 50%,#0004,#0000)}
.scroll{background-size:40px 100%,40px 100%,12px 100%,12px 100%}
.scroll{background-position:0 0,100% 0,0 0,100% 0;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e5e7eb;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
table.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere}
table.facts td:first-child{color:#6b7280;white-space:nowrap;vertical-align:top}
.row{display:flex;flex-wrap:wrap;gap:1rem}.note{color:#6b7280;font-size:.88rem}
figure{margin:0;max-width:100%}figure img{width:100%;border-radius:4px}
figure.thumbnail{width:250px}figure.picture{width:516px}
figcaption{font-size:.8rem;color:#4b5563;overflow-wrap:anywhere}
img.chart{width:516px;max-width:100%}
b.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
@media(max-width:520px){figure.thumbnail{width:calc(50% - .5rem)}body{margin:1rem auto}
th,td{padding:.25rem .4rem}}
@media print{body{max-width:none;margin:0;font-size:11px}h2{break-after:avoid}
figure,img,tr{break-inside:avoid}.scroll{overflow:visible;background:none}img.chart{width:48%}
figure.thumbnail{width:22%}figure.picture{width:48%}th,td{padding:.15rem .35rem}}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The text of a page.

    Args:
      title: plain text.
      parts: HTML, in order.
    """
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table, which scrolls by itself where the window is narrow."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{_rows(rows)}</table></div>'


def facts(rows: Sequence[tuple[str, Any]]) -> str:
    """A table of names and values."""
    return f'<div class="scroll"><table class="facts">{_rows(rows)}</table></div>'


def _rows(rows: Sequence[Sequence[Any]]) -> str:
    return "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )


def note(text: str, keys: Sequence[tuple[str, Color]] = ()) -> str:
    """A line of small text, with what the colours of a picture mean.

    Args:
      text: plain text.
      keys: (meaning, colour) of each.
    """
    legend = "".join(
        f' <b class="key" style="background:rgb{color}"></b>{html.escape(meaning)}&ensp;'
        for meaning, color in keys
    )
    return f'<p class="note">{html.escape(text)}{legend}</p>'


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


def figures(shown: Sequence[str]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="row">{"".join(shown)}</div>' if shown else "<p>None.</p>"


def picture(image: np.ndarray, caption: str, *, kind: str = "picture") -> str:
    """An image as a figure.

    Args:
      image: uint8 RGB [H, W, 3].
      caption: plain text below.
      kind: "picture", or "thumbnail" for a small one.
    """
    jpeg = visualize.encode_image(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 82))
    data = base64.b64encode(jpeg).decode()
    text = html.escape(caption)
    return (
        f'<figure class="{kind}"><img src="data:image/jpeg;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def thumbnail(image: np.ndarray, box: np.ndarray, caption: str, drawn: list) -> str:
    """A crop around a box, with a caption.

    Args:
      image: uint8 [H, W, 3], RGB.
      box: (x1, y1, x2, y2) in pixels; the crop shows twice its longer side, and is moved into the
        image where it would leave it, so that crops are squares.
      caption: plain text below.
      drawn: [(boxes [N, 4], colour)], drawn into the crop.
    """
    side = max(float((box[2:] - box[:2]).max()) * 2, 64)
    last = np.maximum(np.array(image.shape[1::-1]) - side, 0)
    low = np.clip((box[:2] + box[2:]) / 2 - side / 2, 0, last).astype(int)
    crop = image[low[1] : low[1] + int(side), low[0] : low[0] + int(side)]
    factor = 236 / max(crop.shape[:2])
    size = [max(1, round(length * factor)) for length in crop.shape[1::-1]]
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
    for boxes, color in drawn:
        shifted = (boxes - np.tile(low, 2)) * factor
        crop = visualize.draw_boxes(crop, shifted, color=color, min_short_side=1)
    return picture(crop, caption, kind="thumbnail")
