#!/usr/bin/env bash
# Training on a Cloud TPU slice, from a machine with gcloud:
#   NAME=paella ZONE=us-west4-a TYPE=v5litepod-16 ./launch/tpu_vm.sh start --config paella:1b --workdir /mnt/runs/paella
#   NAME=paella ZONE=us-west4-a ./launch/tpu_vm.sh logs | stop | delete
# `start` makes the slice or takes the one that is there, installs this checkout on every worker,
# trains, and begins again when the slice is preempted or a process crashes (RETRIES=100 times,
# WAIT=60 seconds apart). Cut off from the workers, it finds the training that goes on there.
# SPOT=1: a cheaper slice that can be taken away. QUEUED=1: ask by a queued resource.
# PROJECT, VERSION (the image) where gcloud's and the usual ones are not meant.
# DRY_RUN=1 or --dry-run as the first argument prints every command and runs none.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,10s/^# //p' "$0"; exit 0 ;; esac
fail() {
  echo "error: $*" >&2
  exit 2
}
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=1
  shift
fi
action="${1:-}"
[ $# -eq 0 ] || shift
case "$action" in
  start) [ $# -gt 0 ] || fail "start needs the arguments of paella_jax.train" ;;
  logs | stop | delete) ;;
  *) fail "usage: launch/tpu_vm.sh start ARGUMENTS | logs | stop | delete, not '$action'" ;;
esac
[ -n "${NAME:-}" ] && [ -n "${ZONE:-}" ] || fail "set NAME and ZONE of the slice"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet)
wait_seconds="${WAIT:-60}"
exec 3>&1 # for the commands of a dry run, also from where the output is read

run() { # runs a command, or prints it as one would type it
  local word line=""
  if [ -z "${DRY_RUN:-}" ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_/.:=,@+-]+$ ]] || word="${word@Q}"
    line+="${line:+ }$word"
  done
  echo "$line" >&3
}

tpu() { run gcloud compute tpus "$1" "$2" "$NAME" "${where[@]}" "${@:3}"; }
on_workers() { tpu tpu-vm ssh --worker="$1" --command="$2"; }

state_of() { # state_of tpu-vm|queued-resources: empty where there is none
  local field=state
  [ "$1" = tpu-vm ] || field=state.state
  tpu "$1" describe --format="value($field)" 2>/dev/null || true
}

image() { # the usual image of a type
  case "$TYPE" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "set VERSION, the image of the slice: no usual one is known for TYPE '$TYPE'" ;;
  esac
}

remove() {
  if [ -n "${QUEUED:-}" ]; then
    tpu queued-resources delete --force || true
  else
    tpu tpu-vm delete || true
  fi
}

create() {
  local kind=(--accelerator-type="$TYPE" ${SPOT:+--spot})
  if [ -n "${QUEUED:-}" ]; then
    tpu queued-resources create --node-id="$NAME" --runtime-version="$VERSION" "${kind[@]}"
  else
    tpu tpu-vm create --version="$VERSION" "${kind[@]}"
  fi
}

waiting=75 # the code of what is on its way
ensure() { # returns 0 when the slice is ready; what cannot become ready is made anew
  local state queued=""
  state="$(state_of tpu-vm)"
  [ -z "${QUEUED:-}" ] || queued="$(state_of queued-resources)"
  case "$state/$queued" in
    READY/*) return 0 ;;
    / | /SUSPENDED | /FAILED) ;;
    CREATING/* | STARTING/* | RESTARTING/* | REPAIRING/* | /*)
      echo "$NAME: ${state:-$queued}" >&2
      return "$waiting"
      ;;
  esac
  [ -z "$state$queued" ] || remove
  create || return
  [ -z "${QUEUED:-}" ] || [ -n "${DRY_RUN:-}" ] || return "$waiting"
}

install() {
  local archive
  archive="${TMPDIR:-/tmp}/paella_jax-$NAME.tgz"
  run tar -czf "$archive" -C "$root" --exclude-vcs --exclude=.venv --exclude=./runs --exclude=./logs . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:paella_jax.tgz" "${where[@]}" --worker=all &&
    on_workers all "mkdir -p paella_jax && tar -xzf paella_jax.tgz -C paella_jax && paella_jax/launch/tpu_worker.sh install"
}

start() {
  local code attempt=0 command
  command="paella_jax/launch/tpu_worker.sh start$(printf ' %q' "$@")"
  while [ "$attempt" -le "${RETRIES:-100}" ]; do
    code=0
    { ensure && install && on_workers all "$command"; } || code=$?
    case "$code" in
      0 | 2) return "$code" ;;
      143) # a slice that is taken away stops its processes like a person does
        [ "$(state_of tpu-vm)" != READY ] || return 143
        ;;
    esac
    if [ "$code" != "$waiting" ]; then
      attempt=$((attempt + 1))
      echo "attempt $attempt ended with exit code $code: again in $wait_seconds seconds" >&2
    fi
    sleep "$wait_seconds"
  done
  echo "error: given up after $attempt attempts" >&2
  return 1
}

case "$action" in
  start)
    [ -n "${TYPE:-}" ] || fail "set TYPE, such as v5litepod-16"
    VERSION="${VERSION:-$(image)}"
    start "$@"
    ;;
  logs) on_workers "${WORKER:-0}" "tail -n 100 -f paella_jax/logs/rank.log" ;;
  stop) on_workers all "paella_jax/launch/tpu_worker.sh stop" ;;
  delete) remove ;;
esac
