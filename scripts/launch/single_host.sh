#!/usr/bin/env bash
# One machine, one process: JAX sees all of its GPUs, and the batch is split over them.
#   bash scripts/launch/single_host.sh --config=configs/atss_r50_fpn_1x.py --workdir=workdirs/r50
#   CUDA_VISIBLE_DEVICES=0,1 bash scripts/launch/single_host.sh ...     # some of them
# Exit code 75 means: told to stop (SIGTERM), saved. The same command then goes on, here at once
# unless this script itself was told to stop. 0 ends it, and so does 2, a user's mistake. Any other
# code (an error, a crash, no memory) is tried again, RETRIES times in a row. PYTHON chooses the
# interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
stopped=0
child=0
failures=0
trap 'stopped=1; [ "$child" -gt 0 ] && kill -TERM "$child" 2>/dev/null' TERM INT
while [ "$stopped" -eq 0 ]; do
  "${PYTHON:-python}" -m atss_jax.main "$@" &
  child=$!
  # told to stop between the last look and the start
  [ "$stopped" -eq 1 ] && kill -TERM "$child" 2>/dev/null
  wait "$child"
  code=$?
  # a signal ends the first wait: wait for the save as well
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  # told to stop before Python could answer: nothing was lost
  [ "$stopped" -eq 1 ] && [ "$code" -eq 143 ] && code=75
  case "$code" in
    0 | 2) exit "$code" ;;
    75) failures=0 ;;
    *)
      failures=$((failures + 1))
      [ "$failures" -gt "${RETRIES:-3}" ] && exit "$code"
      ;;
  esac
  [ "$stopped" -eq 1 ] && exit "$code"
  echo "ended with code $code; going on in ${RESTART_DELAY:-10} s" >&2
  sleep "${RESTART_DELAY:-10}" &
  child=$!
  wait "$child"
done
exit 75
