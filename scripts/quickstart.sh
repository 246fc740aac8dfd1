#!/usr/bin/env bash
# Installs the package into a virtual environment, and trains and evaluates the quickstart.
# Needs Python 3.11 to 3.13 with pip; no GPU.  VENV=folder and PYTHON=interpreter choose others.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# --no-compile: Python compiles what it imports; pip would compile every file of every package.
"$venv/bin/python" -m pip install --quiet --no-compile --editable .
exec "$venv/bin/python" -m atss_jax.main --config=configs/quickstart.py \
  --workdir=workdirs/quickstart "$@"
