#!/usr/bin/env bash
# The fast tests on the oldest and the newest JAX, each in a fresh environment; a line per row.
#   bash scripts/test_matrix.sh                 all rows
#   bash scripts/test_matrix.sh 3.13            the rows of one Python
# Rows: Python 3.11 with JAX 0.10.2 (the newest that runs there), 3.12 and 3.13 with the newest JAX.
# Warnings are errors. A Python that is not here, or where the packages cannot be installed, is
# reported, and the script ends with 1.
set -uo pipefail
cd "$(dirname "$0")/.."
rows=("3.11 jax==0.10.2" "3.12 jax" "3.13 jax")
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
status=0
chosen=0

find_python() {
  local candidate
  for candidate in "python$1" "$HOME/.pyenv/versions/$1."*/bin/python; do
    if "$candidate" -c "import venv" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

for row in "${rows[@]}"; do
  read -r version jax <<<"$row"
  [ -z "${1:-}" ] || [ "$1" = "$version" ] || continue
  chosen=$((chosen + 1))
  if ! python="$(find_python "$version")"; then
    echo "Python $version, $jax: not found"
    status=1
    continue
  fi
  venv="$folder/$version"
  start=$SECONDS
  if ! "$python" -m venv "$venv" ||
    ! "$venv/bin/python" -m pip install --quiet --no-compile --editable ".[test]" "$jax"; then
    echo "Python $version, $jax: not installed"
    status=1
    continue
  fi
  installed=$((SECONDS - start))
  found="$("$venv/bin/python" -c 'import jax; print(jax.__version__)')"
  start=$SECONDS
  if VENV="$venv" bash scripts/run_tests.sh -m "not slow" >"$folder/log" 2>&1; then
    result="$(grep -E '[0-9]+ passed' "$folder/log" | tail -n 1)"
  else
    result="FAILED"
    status=1
    tail -n 40 "$folder/log"
  fi
  echo "Python $version, JAX $found: $result; installed in ${installed} s, tests $((SECONDS - start)) s"
  rm -rf "$venv"
done
if [ "$chosen" = 0 ]; then
  echo "Python $1: no such row. Rows are ${rows[*]%% *}." >&2
  status=1
fi
exit "$status"
