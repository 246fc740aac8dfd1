#!/usr/bin/env bash
# One machine, one process: JAX sees all of its GPUs, and the batch is split over them.
#   bash scripts/launch/single_host.sh --config=configs/atss_r50_fpn_1x.py --workdir=workdirs/r50
#   CUDA_VISIBLE_DEVICES=0,1 bash scripts/launch/single_host.sh ...     # some of them
# Exit code 75 means: told to stop (SIGTERM), saved. The same command then goes on, here at once
# unless this script itself was told to stop. Any other code ends it. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
stopped=0
child=0
trap 'stopped=1; [ "$child" -gt 0 ] && kill -TERM "$child" 2>/dev/null' TERM INT
while true; do
  "${PYTHON:-python}" -m atss_jax.main "$@" &
  child=$!
  wait "$child"
  code=$?
  # a signal ends the first wait: wait for the save as well
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  if [ "$code" -ne 75 ] || [ "$stopped" -eq 1 ]; then
    exit "$code"
  fi
  echo "saved and stopped; going on in ${RESTART_DELAY:-10} s" >&2
  sleep "${RESTART_DELAY:-10}"
done
