"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import with_devices

NOTEBOOKS = sorted((Path(__file__).parents[1] / "scripts" / "notebooks").glob("*.ipynb"))


SAYS = {
    "assigners": ("positives", "ms per image"),
    "own_folder": ("'AR100'", "in the last of 800", "result.json", "Result("),
}
"""Notebook -> parts of its output."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the Jupyter client, not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", with_devices(1)["XLA_FLAGS"])  # of the kernel's process
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    text = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert all(part in text for part in SAYS[path.stem])
