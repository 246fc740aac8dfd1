"""scripts/test_matrix.sh, with a stand-in for Python: rows that are wrong, missing or broken."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "test_matrix.sh"


def matrix(folder, *rows, python="exit 0"):
    """The script, where python3.12 does what is given, and no other Python is there."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "python3.12").write_text(f"#!/bin/bash\n{python}\n")
    (commands / "python3.12").chmod(0o755)
    for name in ("bash", "dirname", "mktemp", "rm", "mkdir", "chmod", "grep", "tail"):
        os.symlink(f"/usr/bin/{name}", commands / name)
    return subprocess.run(
        ["/usr/bin/env", "bash", str(SCRIPT), *rows],
        env={"PATH": str(commands), "HOME": str(folder), "TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_an_unknown_row_is_an_error_that_names_the_rows(tmp_path):
    done = matrix(tmp_path, "3.14")
    assert done.returncode == 1
    assert done.stderr == "Python 3.14: no such row. Rows are 3.11 3.12 3.13.\n"


def test_a_python_that_is_not_here_is_reported(tmp_path):
    done = matrix(tmp_path, "3.13")
    assert (done.returncode, done.stdout) == (1, "Python 3.13, jax: not found\n")


NO_PIP = 'mkdir -p "$3/bin"; printf "#!/bin/bash\\nexit 1\\n" > "$3/bin/python"'


@pytest.mark.parametrize(
    "venv", ["exit 1", f'{NO_PIP}; exec chmod +x "$3/bin/python"'], ids=["venv", "pip"]
)
def test_a_row_that_cannot_be_installed_runs_no_tests(tmp_path, venv):
    python = f'[ "$1" = -c ] && exit 0\n{venv}'  # -c: the look whether it has venv
    done = matrix(tmp_path, "3.12", python=python)
    assert (done.returncode, done.stdout) == (1, "Python 3.12, jax: not installed\n"), done.stderr
