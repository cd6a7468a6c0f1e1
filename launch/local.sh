#!/usr/bin/env bash
# N processes of one command on this machine, as parts of one run:
#   ./launch/local.sh 2 python -m paella_jax.train --config paella:tiny --workdir runs/two --config.tokenizer=RUN
# The terminal shows rank 0; LOGS=FOLDER keeps rank-0.log, rank-1.log, ... (default: a new folder).
# DEVICES_PER_PROCESS=4 simulates 4 CPU devices in each process; GPUS_PER_PROCESS=1 gives each
# process GPUs of its own. PORT=N fixes the coordinator's port, else a free one is taken.
# SIGTERM and SIGINT reach every process. When one fails, the others have PATIENCE=10 seconds to tell
# why and end; then they get SIGTERM, and GRACE=60 seconds later SIGKILL. The exit code is the first
# that was not 0 (143: stopped and saved).
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,10s/^# //p' "$0"; exit 0 ;; esac
fail() {
  echo "error: $*" >&2
  exit 2
}
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "usage: launch/local.sh N COMMAND...: N is a number of processes, not '${1:-}'"
[ $# -ge 2 ] || fail "usage: launch/local.sh N COMMAND...: no command"
[ -z "${DEVICES_PER_PROCESS:-}" ] || [ -z "${GPUS_PER_PROCESS:-}" ] ||
  fail "DEVICES_PER_PROCESS simulates devices on CPU, GPUS_PER_PROCESS shares real ones: set one of them"
for name in DEVICES_PER_PROCESS GPUS_PER_PROCESS PATIENCE GRACE PORT; do
  [[ "${!name:-1}" =~ ^[1-9][0-9]*$ ]] || fail "$name must be a number of at least 1, not '${!name}'"
done
count="$1"
shift
command -v "$1" >/dev/null || fail "no command '$1'"
logs="${LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/paella_logs.XXXXXX")}"
mkdir -p "$logs"

free_port() { # below the range from which the system gives ports to outgoing connections
  local port
  while port=$((RANDOM % 12000 + 20000)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-$(free_port)}" JAX_NUM_PROCESSES="$count"
export PYTHONUNBUFFERED=1 # a log that shows the last line before a crash
unset JAX_LOCAL_DEVICE_IDS
if [ -n "${DEVICES_PER_PROCESS:-}" ]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES_PER_PROCESS"
fi

device_ids() { # the GPUs of rank $1
  seq -s, $(($1 * GPUS_PER_PROCESS)) $((($1 + 1) * GPUS_PER_PROCESS - 1))
}

# The terminal's copy of rank 0 outlives signals, so that nothing of the last lines is lost.
exec 3> >(trap '' TERM INT && exec tee "$logs/rank-0.log")
screen=$!
set -m # a process group for each rank: signals reach what it started, and SIGINT is not ignored
pids=()
codes=()
told=""
result=0

signal_all() { # signal_all NAME: to every process group that still runs
  local rank
  for rank in "${!pids[@]}"; do
    [ -n "${codes[rank]:-}" ] || kill -s "$1" -- "-${pids[rank]}" 2>/dev/null || true
  done
}

# shellcheck disable=SC2317,SC2329  # called by the traps
forward() { # the second time is meant: whoever asks again does not want to wait
  [ -z "$told" ] || signal_all KILL
  told="$1"
  signal_all "$1"
}
trap 'forward TERM' TERM HUP
trap 'forward INT' INT

for ((rank = 0; rank < count; rank++)); do
  [ -z "${GPUS_PER_PROCESS:-}" ] || JAX_LOCAL_DEVICE_IDS="$(device_ids "$rank")"
  export JAX_PROCESS_ID="$rank" ${JAX_LOCAL_DEVICE_IDS:+JAX_LOCAL_DEVICE_IDS}
  if [ "$rank" = 0 ]; then
    "$@" >&3 2>&1 3>&- </dev/null &
  else
    "$@" >"$logs/rank-$rank.log" 2>&1 3>&- </dev/null &
  fi
  pids+=($!)
done
exec 3>&-
echo "$count processes of $1, coordinator $JAX_COORDINATOR_ADDRESS, logs in $logs" >&2
[ -z "$told" ] || signal_all "$told" # those that were started after the signal came

note_ended() { # writes down the exit codes of those that have ended
  local rank
  for rank in "${!pids[@]}"; do
    if [ -z "${codes[rank]:-}" ] && ! kill -0 "${pids[rank]}" 2>/dev/null; then
      codes[rank]=0
      wait "${pids[rank]}" || codes[rank]=$?
      [ "${codes[rank]}" = 0 ] || echo "rank $rank ended with exit code ${codes[rank]}: $logs/rank-$rank.log" >&2
      [ "$result" != 0 ] || result="${codes[rank]}"
    fi
  done
}

timer=""
stage=0 # of the end of those that are left
rung() { [ -z "$timer" ] || ! kill -0 "$timer" 2>/dev/null; }
while note_ended && [ "${#codes[@]}" -lt "$count" ]; do
  if [ "$result" != 0 ] && rung; then
    stage=$((stage + 1))
    seconds=""
    case "$stage" in
      1) seconds="${PATIENCE:-10}" ;;
      2)
        [ -n "$told" ] || signal_all TERM
        seconds="${GRACE:-60}"
        ;;
      3)
        echo "some processes did not end within ${GRACE:-60} seconds: SIGKILL" >&2
        signal_all KILL
        ;;
    esac
    if [ -n "$seconds" ]; then
      sleep "$seconds" &
      timer=$!
    fi
  fi
  wait -n 2>/dev/null || true
done
[ -z "$timer" ] || { kill "$timer" && wait "$timer"; } 2>/dev/null || true
codes=()
signal_all KILL # what the processes started and left behind
wait "$screen" 2>/dev/null || true
exit "$result"
