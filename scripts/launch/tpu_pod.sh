#!/usr/bin/env bash
# A Cloud TPU slice through queued resources: create (spot), install, run on all workers, restart.
#   export PROJECT=my-project ZONE=us-central2-b BUCKET=gs://my-bucket
#   NAME=atss TYPE=v4-32 bash scripts/launch/tpu_pod.sh \
#     --config=configs/atss_r50_fpn_1x.py --workdir=$BUCKET/r50 \
#     --config.data.train_annotations=$BUCKET/coco/annotations/instances_train2017.json ...
# Every worker runs the same command; JAX finds the others. The workdir must be a bucket.
# Preempted slices are deleted and asked for again; the run goes on from its newest checkpoint.
# What is committed is copied to the workers, at every call. SPOT=0 asks for on-demand capacity.
# Needs gcloud, logged in, with the TPU API enabled. Not run by this project.
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${PROJECT:?}" "${ZONE:?}"
name="${NAME:-atss}"
type="${TYPE:-v4-32}"
runtime="${RUNTIME:-tpu-ubuntu2204-base}"
tpu=(gcloud compute tpus)
where=(--project="$PROJECT" --zone="$ZONE")

state() {
  "${tpu[@]}" queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null
}

on_all_workers() {
  "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

create() {
  local spot=()
  [ "${SPOT:-1}" = 1 ] && spot=(--spot)
  "${tpu[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]+"${spot[@]}"}" || return
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED | SUSPENDING) return 1 ;; esac
    sleep 30
  done
}

delete() {
  "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

install() {
  git archive --format=tar.gz --output="$folder/atss_jax.tar.gz" HEAD &&
    "${tpu[@]}" tpu-vm scp "$folder/atss_jax.tar.gz" "$name": "${where[@]}" --worker=all &&
    on_all_workers "mkdir -p atss_jax && tar xzf atss_jax.tar.gz -C atss_jax && cd atss_jax &&
      python3 -m pip install --quiet --editable '.[tpu]'"
}

keep_slice() {
  echo "$1; the slice is kept. Delete it with: \
${tpu[*]} queued-resources delete $name ${where[*]} --force" >&2
  exit "$2"
}

folder="$(mktemp -d)" || exit 1
trap 'rm -rf "$folder"' EXIT
arguments="$(printf ' %q' "$@")"
installed=0 # whether the slice has this checkout: one that an earlier call kept has its own
attempts=0  # to install on this slice
while true; do
  if [ "$(state)" != ACTIVE ]; then
    installed=0 attempts=0
    [ -n "$(state)" ] && delete
    if ! create; then
      echo "no slice yet; asking again in 60 s" >&2
      sleep 60
      continue
    fi
  fi
  if [ "$installed" = 0 ]; then
    if install; then
      installed=1
    else
      attempts=$((attempts + 1))
      [ "$attempts" -lt 5 ] || keep_slice "5 attempts to install on all workers failed" 1
      echo "not installed on all workers; trying again in 60 s" >&2
      sleep 60
      continue
    fi
  fi
  on_all_workers "cd atss_jax && python3 -m atss_jax.main$arguments --config.run.distributed=auto"
  code=$?
  if [ "$code" -eq 0 ]; then
    break
  fi
  # 75: saved on a notice. Otherwise, go on only if the slice is gone: an error would come again.
  if [ "$code" -ne 75 ] && [ "$(state)" = ACTIVE ]; then
    keep_slice "the run ended with code $code" "$code"
  fi
  echo "preempted; going on" >&2
  sleep 30
done
[ "${KEEP:-0}" = 1 ] || delete
