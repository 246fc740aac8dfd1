"""How far tested numbers are from the expected ones, for `scripts/golden_differences.py`.

Where the environment names a folder, every comparison of a test adds a line to a file in it; tests
do not know of it.
"""

import json
import os
from pathlib import Path

import numpy as np

FOLDER = "ATSS_JAX_GOLDEN_ERRORS"
"""Variable of the environment."""


def note(error: float) -> None:
    """Writes a figure down for the test that runs."""
    if folder := os.environ.get(FOLDER):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"test": test, "error": float(error)}) + "\n")


def note_comparisons() -> None:
    """From now on `np.testing.assert_allclose` notes the largest error, as a share of the scale.

    The scale of an array is its largest finite value. Only where the expected value is not finite
    may ours be so without an error of NaN or infinity.
    """
    compare = np.testing.assert_allclose

    def noting(actual, desired, *arguments, **keywords):
        ours, expected = (np.asarray(x, np.float64) for x in (actual, desired))
        ours, expected = np.broadcast_arrays(ours, expected)
        finite = np.isfinite(expected)
        if finite.any():
            scale = np.abs(expected[finite]).max()
            note(np.abs(ours - expected)[finite].max() / max(scale, 1e-30))
        return compare(actual, desired, *arguments, **keywords)

    np.testing.assert_allclose = noting
