#!/usr/bin/env bash
# Installs the package with the documentation tools into a virtual environment, and builds the pages.
# Needs Python 3.11 to 3.13 with pip.  VENV=folder and PYTHON=interpreter choose others.
#   bash scripts/build_docs.sh                 docs/_build/html/index.html
#   bash scripts/build_docs.sh -b linkcheck    checks the links to other sites
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv-docs}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-compile --editable ".[docs]"
JAX_PLATFORMS=cpu exec "$venv/bin/python" -m sphinx -W --keep-going "$@" docs docs/_build/html
