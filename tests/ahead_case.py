"""Runs `scripts/aot_report.py` on something small."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def report(tmp_path, *options):
    """The figures of a small part, compiled in a process of its own."""
    file = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, ROOT / "scripts/aot_report.py", "--bucket=64x96", "--per-device=2",
         f"--json={file}", *options],
        check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    return json.loads(file.read_text())
