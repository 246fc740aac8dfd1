"""JPEG files by their markers alone: the size, and whether the end is there.

No pixel is decoded, so a plain header takes a few us where an image library takes 50.
"""

import re

START = b"\xff\xd8"
END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Markers that end entropy-coded data or start a segment: not stuffed bytes, not restarts."""
_END_CODE, _SCAN = END[1], 0xDA
_BETWEEN_SCANS = {0xC4, _SCAN, 0xDB, 0xDC, 0xDD, _END_CODE}
"""Tables, scans and the end; another marker inside a scan is foreign data behind a cut."""
_FRAMES = {0xC0, 0xC1, 0xC2}
"""Starts of frames that every decoder knows: baseline, extended, progressive."""
_PLAIN = {0xC4, 0xDB, 0xDD, 0xE0, 0xED, 0xEE, 0xFE}
"""Tables, JFIF, Photoshop, Adobe and comments: none of them turns the picture."""
_APPLICATION = set(range(0xE0, 0xF0))
"""EXIF, colour profiles and others: they may turn the picture; its stored size stays."""
_COMPONENTS = {1, 3}


def plain_size(data: bytes, *, is_upright: bool = True) -> tuple[int, int] | None:
    """Stored (h, w) px of a JPEG of 8 bits per sample, gray or colour.

    Args:
      data: the file's beginning.
      is_upright: None also for a file that has EXIF, which may turn it.

    Returns:
      None where the header has anything else in it, or is damaged: an image library has to look.
    """
    place, size = 2, None
    passed = _PLAIN if is_upright else _PLAIN | _APPLICATION
    while place + 9 < len(data):
        if data[place] != 0xFF:
            return None
        code = data[place + 1]
        length = data[place + 2] << 8 | data[place + 3]
        if code in _FRAMES:
            height = data[place + 5] << 8 | data[place + 6]
            width = data[place + 7] << 8 | data[place + 8]
            is_usual = data[place + 4] == 8 and data[place + 9] in _COMPONENTS
            if size or not is_usual or not height or not width:
                return None
            size = (height, width)
        elif code == _SCAN:
            return size
        elif code not in passed or length < 2:
            return None
        place += 2 + length
    return None


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG ends before its end marker; False for other formats.

    Walks the markers of the (first) picture, so bytes after its end, as in motion photos, neither
    hide nor fake a cut. Some decoders fill the missing part with gray and say nothing.
    """
    if data[:2] != START:
        return False
    place, in_scans = 2, False
    while True:
        marker = _MARKER.search(data, place)
        if marker is None:
            return True
        place = marker.end()
        code = data[place - 1]
        if code == _END_CODE:
            return False
        if in_scans and code not in _BETWEEN_SCANS:
            return True
        in_scans = in_scans or code == _SCAN
        if place + 2 > len(data):
            return True
        place += max(2, data[place] << 8 | data[place + 1])
