"""Errors against the golden numbers, with XLA's default flags and with the tests' quick ones.

    python scripts/golden_differences.py              # from a clone with the folder ../shared

The tests compile with few optimisations (scripts/quick_compile.py); users do not. This runs the
tests that compare with golden numbers both ways and prints the largest error of each test: the
largest difference in a compared array, as a share of the array's largest value. Conventions that
differ on purpose are in both columns alike. Every test must pass. The last line is JSON.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "test_golden_networks.py",
    "test_golden_assignment.py",
    "test_losses.py",
    "test_quality_losses.py",
    "test_postprocess.py",
    "test_anchors.py",
    "test_boxes.py",
    "test_nms.py",
    "test_trajectory.py",
)
KINDS = ("default", "quick")


def run(kind: str, files: list[str]) -> tuple[dict[str, float], float, int]:
    """Runs test files with one kind of flags.

    Returns:
      The largest error by test function, seconds, and pytest's exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = {"ATSS_JAX_TEST_XLA": kind, "ATSS_JAX_GOLDEN_ERRORS": folder}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        start = time.monotonic()
        done = subprocess.run(
            [*command, *(f"tests/{name}" for name in files)],
            cwd=ROOT,
            env={**os.environ, **variables},
        )
        seconds = time.monotonic() - start
        return largest_errors(Path(folder)), seconds, done.returncode


def largest_errors(folder: Path) -> dict[str, float]:
    """By test function; NaN where one of its errors is.

    Args:
      folder: of the files that `tests/golden_errors.py` writes.
    """
    errors: dict[str, list[float]] = collections.defaultdict(list)
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            errors[row["test"].partition("[")[0].removeprefix("tests/")].append(row["error"])
    return {name: float(np.max(found)) for name, found in errors.items()}


def main() -> int:
    """Runs both, prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=list(FILES), help="of the folder tests")
    parser.add_argument("--only", choices=KINDS, help="one kind of flags")
    args = parser.parse_args()
    kinds = (args.only,) if args.only else KINDS
    results = {kind: run(kind, args.files) for kind in kinds}
    names = sorted({name for errors, _, _ in results.values() for name in errors})
    print(f"{'largest error':78}" + "".join(f"{kind:>9}" for kind in kinds))
    for name in names:
        errors = [results[kind][0].get(name) for kind in kinds]
        cells = ("–" if error is None else f"{error:.1e}" for error in errors)
        print(f"{name:78}" + "".join(f"{cell:>9}" for cell in cells))
    summary = {
        kind: {"errors": errors, "seconds": round(seconds), "passed": code == 0}
        for kind, (errors, seconds, code) in results.items()
    }
    print(json.dumps(summary))
    return int(any(code for _, _, code in results.values()))


if __name__ == "__main__":
    sys.exit(main())
