"""Lines on a terminal: wrapped or cut at its width, and left alone elsewhere."""

import fcntl
import io
import logging
import os
import pty
import select
import struct
import sys
import termios

import pytest

from atss_jax.evaluation.coco_metrics import METRICS
from atss_jax.run.validation import summary
from atss_jax.runtime import screen
from atss_jax.runtime.metric_writer import Progress, configure_logging


def test_lines_are_wrapped_at_words():
    text = "  a line that is indented and long\nshort\n/a/path/that/is/longer/than/the/line"
    assert screen.wrapped(text, None) == text
    assert screen.wrapped(text, 20).splitlines() == [
        "  a line that is",
        "    indented and",
        "    long",
        "short",
        "/a/path/that/is/longer/than/the/line",
    ]


def read_all(descriptor: int) -> str:
    """What is waiting at the other end of a terminal."""
    chunks = []
    while select.select([descriptor], [], [], 0.2)[0]:
        chunks.append(os.read(descriptor, 65536))
    return b"".join(chunks).decode()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_whole_lines(columns, monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    stream = os.fdopen(slave, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(0, 90_000)
    texts = {name: "0.123456789" for name in ("loss", "lr", "positives", "box", "more", "and more")}
    progress.report(1000, 16, texts)
    progress.note("a word " * 30)
    progress.close()  # nothing is open
    progress.report(1100, 16, {})
    progress.close()
    progress.close()
    screen.say("saved")
    record = logging.LogRecord(
        "x", logging.WARNING, "f.py", 1, "a warning that is long " * 9, (), None
    )
    print(screen.LineFormatter().format(record), file=stream, flush=True)
    monkeypatch.undo()
    text = read_all(master).replace("\r\n", "\n")
    stream.close()
    os.close(master)
    lines = [line.replace("\x1b[K", "") for line in text.replace("\r", "\n").split("\n")]
    assert max(map(len, lines)) <= columns
    (row,) = [line for line in lines if line.startswith("step 1000/90000")]
    assert row.endswith(" 0.123456789") and len(row) < columns and "and more" not in row
    assert lines[lines.index("saved") - 1].startswith("step 1100/90000")
    assert text.count("word") == 30 and "WARNING: a warning" in text


def test_a_value_stays_beside_its_name():
    metrics = {name: 0.5 for name in METRICS} | {"AP/traffic light": 0.25, "AP/bus": 0.5}
    text = summary(metrics)
    for width in range(40, 80):
        lines = [line.strip() for line in screen.wrapped(text, width).splitlines()]
        assert max(map(len, lines)) <= width
        assert all(line.startswith(("AP", "AR", "traffic", "bus")) for line in lines)
    assert "APl 0.5000  AR1 0.5000" in screen.wrapped(text, None)


def test_a_file_gets_long_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    Progress(0, 10).note("a word " * 30)
    assert stream.getvalue() == "a word " * 30 + "\n"
    assert screen.width_of(stream) is None


def test_notes_of_other_packages_stay_off_the_screen(monkeypatch):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.root, "level", logging.INFO)  # as absl's flags leave it
    configure_logging()
    logging.getLogger("matplotlib.font_manager").info("generated new fontManager")
    logging.getLogger("matplotlib.font_manager").warning("no such font")
    logging.getLogger("atss_jax.models.hub").info("fetched")
    logging.info("from the root")
    assert stream.getvalue().splitlines() == ["WARNING: no such font", "fetched", "from the root"]
