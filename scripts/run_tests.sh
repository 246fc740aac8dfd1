#!/usr/bin/env bash
# Installs the package with its test tools into a virtual environment, and runs all tests.
# Needs Python 3.11 to 3.13 with pip.  VENV=folder and PYTHON=interpreter choose others.
#   bash scripts/run_tests.sh                  everything
#   bash scripts/run_tests.sh -m "not slow"    the fast ones
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# --no-compile: Python compiles what it imports; pip would compile every file of every package.
"$venv/bin/python" -m pip install --quiet --no-compile --editable ".[test]"
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
