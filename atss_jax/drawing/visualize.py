"""Pictures of boxes and positives: NumPy arrays in, RGB arrays or image files out.

Images are uint8 RGB `[H, W, 3]`, boxes xyxy px of the image. Small images are enlarged before
anything is drawn on them, so that lines and text stay legible; the returned picture is then larger
than the image. Nothing here touches a device.
"""

import contextlib
import math
import os
from collections.abc import Sequence

import cv2
import numpy as np
from etils import epath

from atss_jax.drawing.palette import GROUND_TRUTH_COLOR, LEVEL_COLORS, Color, class_color
from atss_jax.files import write_whole

MIN_SHORT_SIDE = 480
"""Images are enlarged until their short side has this many px."""
MAX_LONG_SIDE = 4000
"""No image is enlarged beyond this many px; strips would fill the memory."""
MAX_JPEG_SIDE = 65_500
"""Px; the limit of the JPEG library."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK, _LIGHT = (24, 24, 24), (245, 245, 245)


def enlarge(image: np.ndarray, min_short_side: int = MIN_SHORT_SIDE) -> tuple[np.ndarray, float]:
    """A copy of an image, enlarged to at least `min_short_side` px, and the factor.

    Args:
      image: uint8 [H, W, 3].
      min_short_side: px; less where the long side would exceed `MAX_LONG_SIDE`.
    """
    short, long = sorted(image.shape[:2])
    factor = max(1.0, min(min_short_side / max(1, short), MAX_LONG_SIDE / max(1, long)))
    if factor == 1:
        return np.ascontiguousarray(image).copy(), 1.0
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    interpolation = cv2.INTER_CUBIC if factor <= 4 else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation), factor


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """An image by a factor of at most 1, uint8 [h, w, 3]."""
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    *,
    color: Color | None = None,
    min_short_side: int = MIN_SHORT_SIDE,
) -> np.ndarray:
    """Draws boxes with their class and score; low scores first, so that good ones lie on top.

    Args:
      image: uint8 [H, W, 3].
      boxes: [N, 4] xyxy px.
      labels: class indices [N], or None.
      scores: in [0, 1] [N], or None.
      class_names: name of each class; the index is shown without.
      color: of all boxes; by class without.
      min_short_side: see `enlarge`.

    Returns:
      uint8 RGB, enlarged.
    """
    picture, factor = enlarge(image, min_short_side)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    thickness = _line_width(picture)
    texts = []
    for i in order:
        label = None if labels is None else int(labels[i])
        box_color = color or class_color(label or 0)
        _rectangle(picture, boxes[i], box_color, thickness)
        text = _caption(label, None if scores is None else float(scores[i]), class_names)
        if text:
            texts.append((text, boxes[i], box_color))
    for text, box, box_color in texts:
        _tag(picture, text, box, box_color)
    return picture


def with_title(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture with a line of text on a dark bar below it.

    Args:
      picture: uint8 [H, W, 3].
      text: the line.
    """
    return _with_bar(picture, [(text, None)])


def draw_side_by_side(
    image: np.ndarray,
    *,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    title: str = "",
    min_short_side: int = MIN_SHORT_SIDE,
) -> np.ndarray:
    """Ground truth on the left, detections from `score_threshold` up on the right.

    Args:
      image: uint8 [H, W, 3].
      gt_boxes: [G, 4] xyxy px.
      gt_labels: [G].
      boxes: [D, 4] xyxy px.
      labels: [D].
      scores: [D].
      class_names: name of each class.
      score_threshold: lowest score that is drawn.
      title: put before the captions, such as the image's id.
      min_short_side: see `enlarge`.
    """
    keep = np.asarray(scores) >= score_threshold
    left = draw_boxes(image, gt_boxes, gt_labels, None, class_names, min_short_side=min_short_side)
    right = draw_boxes(
        image,
        np.asarray(boxes)[keep],
        np.asarray(labels)[keep],
        np.asarray(scores)[keep],
        class_names,
        min_short_side=min_short_side,
    )
    prefix = f"{title}: " if title else ""
    left = _with_bar(left, [(f"{prefix}{count_of(len(gt_boxes), 'object')}", None)])
    caption = f"{count_of(int(keep.sum()), 'detection')} with score >= {score_threshold:.2f}"
    right = _with_bar(right, [(caption, None)])
    gap = np.full((left.shape[0], 8, 3), _LIGHT, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def draw_positives(
    image: np.ndarray,
    centers_per_level: Sequence[np.ndarray],
    gt_boxes: np.ndarray,
    *,
    candidates_per_level: Sequence[np.ndarray] | None = None,
    title: str = "",
    min_short_side: int = 640,
) -> np.ndarray:
    """Positive anchors by pyramid level: dots at their centres, coloured by level, with a legend.

    Args:
      image: uint8 [H, W, 3].
      centers_per_level: for each of P3..P7, (x, y) px of the positive anchors, [n, 2].
      gt_boxes: [G, 4] xyxy px.
      candidates_per_level: (x, y) px of further anchors, drawn as rings.
      title: first words of the legend.
      min_short_side: see `enlarge`.
    """
    picture, factor = enlarge(image, min_short_side)
    picture = (picture.astype(np.float32) * 0.7).astype(np.uint8)  # so that the dots stand out
    unit = _line_width(picture)
    for box in np.asarray(gt_boxes, np.float64).reshape(-1, 4):
        _rectangle(picture, box * factor, GROUND_TRUTH_COLOR, unit)
    for level, color in enumerate(LEVEL_COLORS[: len(centers_per_level)]):
        for center in () if candidates_per_level is None else candidates_per_level[level]:
            _dot(picture, center, factor, (2 + level) * unit, color, filled=False)
    for level in reversed(range(len(centers_per_level))):  # small dots of fine levels on top
        for center in centers_per_level[level]:
            _dot(picture, center, factor, (2 + level) * unit, LEVEL_COLORS[level], filled=True)
    total = sum(len(centers) for centers in centers_per_level)
    prefix, objects = f"{title}: " if title else "", count_of(len(gt_boxes), "object")
    entries: list[tuple[str, Color | None]] = [(f"{prefix}{objects}, {total} positives", None)]
    for level, centers in enumerate(centers_per_level):
        entries.append((f"P{3 + level} {len(centers)}", LEVEL_COLORS[level]))
    return _with_bar(picture, entries)


def contact_sheet(
    images: Sequence[np.ndarray], *, columns: int | None = None, gap: int = 10
) -> np.ndarray:
    """Puts pictures of any sizes on one sheet, row by row; rows and columns fit their pictures.

    Args:
      images: uint8 [h, w, 3] each; at least one.
      columns: cells per row; about as many as rows by default.
      gap: px between cells.

    Raises:
      ValueError: no images.
    """
    if not images:
        raise ValueError("contact_sheet got no images: give at least one.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [max(image.shape[0] for image in row) for row in rows]
    widths = [max(image.shape[1] for image in images[c::columns]) for c in range(columns)]
    shape = (sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (columns + 1), 3)
    sheet = np.full(shape, _LIGHT, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            height, width = image.shape[:2]
            top = gap + sum(heights[:r]) + r * gap + (heights[r] - height) // 2
            left = gap + sum(widths[:c]) + c * gap + (widths[c] - width) // 2
            sheet[top : top + height, left : left + width] = image
    return sheet


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 RGB [H, W, 3] as PNG or JPEG, by the suffix of `path`.

    Raises:
      ValueError: as `encode_image`, or the file cannot be written.
    """
    path = epath.Path(path)
    try:
        data = encode_image(path.suffix, image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        write_whole(path, data)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written. Does the folder exist?") from error


def encode_image(suffix: str, image: np.ndarray, options: Sequence[int] = ()) -> bytes:
    """The bytes of an image file; an image too long for JPEG is shrunk.

    Args:
      suffix: of the file, as in ".png".
      image: uint8 RGB [H, W, 3].
      options: flags of `cv2.imencode`, each with its value after it.

    Raises:
      ValueError: OpenCV cannot write this type, or not in this size.
    """
    if suffix.lower() in (".jpg", ".jpeg", ".jpe"):
        image = shrink(image, MAX_JPEG_SIDE / max(1, *image.shape[:2]))
    with contextlib.suppress(cv2.error):
        is_done, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
        if is_done:
            return data.tobytes()
    height, width = image.shape[:2]
    raise ValueError(f"OpenCV cannot write {width}x{height} px as {suffix!r}. Use .png or .jpg.")


def count_of(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count_of(1, "object"), count_of(0, "object")
    ('1 object', '0 objects')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def drawable(text: str) -> str:
    """A text as OpenCV draws it: version 4 knows ASCII alone, and gets "?" for all else."""
    is_old = int(cv2.__version__.split(".")[0]) < 5
    return text.encode("ascii", "replace").decode() if is_old else text


def _line_width(picture: np.ndarray) -> int:
    return max(2, round(min(picture.shape[:2]) / 400))


def _rectangle(picture: np.ndarray, box: np.ndarray, color: Color, thickness: int) -> None:
    # Far edges lie on the last pixel inside the box.
    x1, y1, x2, y2 = (int(round(float(v))) for v in box)
    far = (max(x1, x2 - 1), max(y1, y2 - 1))
    cv2.rectangle(picture, (x1, y1), far, color, thickness, cv2.LINE_AA)


def _dot(
    picture: np.ndarray, center: np.ndarray, factor: float, radius: int, color: Color, filled: bool
) -> None:
    at = (int(round(float(center[0]) * factor)), int(round(float(center[1]) * factor)))
    if filled:
        cv2.circle(picture, at, radius + 1, _DARK, -1, cv2.LINE_AA)
    cv2.circle(picture, at, radius, color, -1 if filled else 1, cv2.LINE_AA)


def _caption(label: int | None, score: float | None, class_names: Sequence[str] | None) -> str:
    texts = []
    if label is not None:
        known = class_names is not None and 0 <= label < len(class_names)
        texts.append(class_names[label] if class_names is not None and known else str(label))
    if score is not None:
        texts.append(f"{score:.2f}")
    return " ".join(texts)


def _font_scale(picture: np.ndarray) -> float:
    return float(np.clip(min(picture.shape[:2]) / 1000, 0.45, 1.0))


def _readable_on(color: Color) -> Color:
    red, green, blue = color
    return _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else _LIGHT


def _tag(picture: np.ndarray, text: str, box: np.ndarray, color: Color) -> None:
    """Text on a filled strip above the box, or inside it at the image's upper edge."""
    text, scale = drawable(text), _font_scale(picture)
    (width, height), base = cv2.getTextSize(text, _FONT, scale, 1)
    x = int(np.clip(round(float(box[0])), 0, max(0, picture.shape[1] - width - 4)))
    bottom = int(round(float(box[1])))
    if bottom - height - base - 2 < 0:
        bottom = min(bottom + height + base + 4, picture.shape[0])
    top = bottom - height - base - 2
    cv2.rectangle(picture, (x, top), (x + width + 4, bottom), color, -1)
    at = (x + 2, bottom - base)
    cv2.putText(picture, text, at, _FONT, scale, _readable_on(color), 1, cv2.LINE_AA)


def _with_bar(picture: np.ndarray, entries: Sequence[tuple[str, Color | None]]) -> np.ndarray:
    """The picture with a bar below that lists texts, each with a dot where it has a colour."""
    scale = _font_scale(picture) * 1.1
    line_height = int(38 * scale) + 8
    rows: list[list[tuple[str, Color | None, int]]] = [[]]
    x = 12
    for text, color in ((drawable(text), color) for text, color in entries):
        width = cv2.getTextSize(text, _FONT, scale, 1)[0][0] + (36 if color else 16)
        if rows[-1] and x + width > picture.shape[1]:
            rows.append([])
            x = 12
        rows[-1].append((text, color, x))
        x += width
    bar = np.full((line_height * len(rows), picture.shape[1], 3), _DARK, np.uint8)
    for r, row in enumerate(rows):
        middle = r * line_height + line_height // 2
        for text, color, x in row:
            if color:
                cv2.circle(bar, (x + 8, middle), 6, color, -1, cv2.LINE_AA)
                x += 20
            at = (x, middle + int(11 * scale))
            cv2.putText(bar, text, at, _FONT, scale, _LIGHT, 1, cv2.LINE_AA)
    return np.concatenate([picture, bar], axis=0)
