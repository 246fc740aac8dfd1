"""The colours of all pictures and charts."""

import colorsys

Color = tuple[int, int, int]
"""RGB, 0..255."""

LEVEL_COLORS: tuple[Color, ...] = (
    (230, 60, 60),
    (250, 160, 20),
    (70, 200, 80),
    (50, 150, 255),
    (200, 90, 240),
)
"""Of P3..P7."""

GROUND_TRUTH_COLOR: Color = (255, 235, 60)
"""Objects under an assigner's dots."""

OBJECT_COLOR: Color = (40, 200, 80)
"""Annotated objects beside detections."""

MISTAKE_COLOR: Color = (230, 40, 40)
"""A wrong detection."""

DETECTION_COLOR: Color = (60, 120, 240)
"""Any other detection."""

LINE_COLORS = (
    "#2563eb",
    "#dc2626",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#0891b2",
    "#be185d",
    "#4d7c0f",
)
"""Of the lines of a chart, in order."""


def class_color(label: int) -> Color:
    """A bright RGB colour for a class index; neighbouring indices differ well."""
    hue = (0.02 + label * 0.61803398875) % 1.0
    value = 1.0 if label % 2 == 0 else 0.85
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return int(red * 255), int(green * 255), int(blue * 255)
