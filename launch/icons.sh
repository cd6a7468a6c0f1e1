#!/usr/bin/env bash
# The icon benchmark: captioned 32-pixel icons, from a bare machine to scored reports of all families:
#   ./launch/icons.sh [WORKDIR [--config.num_steps=N ...]]
# Fetches the icons with npm (launch/icon_shards.py), or takes SHARDS=FOLDER of train-*.tar and
# heldout-*.tar. Trains a tokenizer, then Paella and MUSE beside a Würstchen (Stages B and C), and scores
# what each draws for the captions that were held back. Calling it again resumes. PRESET=folder64
# takes a night. What follows WORKDIR is given to every training.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,7s/^# //p' "$0"; exit 0 ;; esac
if [[ "${1:-}" == -* ]]; then
  echo "error: launch/icons.sh takes WORKDIR before '$1'" >&2
  exit 2
fi
workdir="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/icons}")"
preset="${PRESET:-folder32}"
overrides=("${@:2}")
shards="$(realpath -m "${SHARDS:-$workdir/shards}")"
packages=(emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0)
if [ -n "${SHARDS:-}" ]; then
  for part in train heldout; do
    compgen -G "$shards/$part*.tar" >/dev/null || {
      echo "error: SHARDS=$SHARDS holds no $part*.tar" >&2
      exit 2
    }
  done
elif [ ! -f "$shards/done" ] && ! command -v npm >/dev/null; then
  echo "error: npm is not here to fetch the icons; install it, or give SHARDS=FOLDER of tar shards" >&2
  exit 2
fi
mkdir -p "$workdir"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/launch/stages.sh"
cd "$ROOT"
if [ -f "$workdir/report.json" ]; then
  echo "already done: $workdir/report.json, report.md, grids in */scores.png (delete the folder to start over)"
  exit 0
fi

half() { # 0 or 1: what keeps a command to that half of the processors, a word per line
  local count cpus
  count=$(nproc)
  cpus="$(($1 * (count / 2)))-$((($1 + 1) * (count / 2) - 1))"
  if [ "$count" -ge 2 ] && taskset -c "$cpus" true 2>/dev/null; then printf '%s\n' taskset -c "$cpus"; fi
}
lane=() # before every command, while two run side by side: threads that wait for others' are slow
fetch() {
  mkdir -p "$workdir/packages"
  (cd "$workdir/packages" && npm pack --silent "${packages[@]}")
  "$PYTHON" launch/icon_shards.py "$workdir/packages" "$shards"
  touch "$shards/done"
  rm -r "$workdir/packages"
}
train() { # NAME CONFIG [overrides]
  timed "$1" "${lane[@]}" "$PYTHON" -m paella_jax.train --config "$2" --workdir "$workdir/$1" --config.data.shards="$shards" \
    "${@:3}" "${overrides[@]}"
}
score() { # NAME [flags]
  [ -f "$workdir/$1/scores.json" ] ||
    timed "score_$1" "${lane[@]}" "$PYTHON" -m paella_jax.evaluate --checkpoint "$workdir/$1" "${@:2}"
}
tokens() {
  mapfile -t lane < <(half 0)
  train paella "paella:$preset" --config.tokenizer="$workdir/vqgan"
  train muse "muse:$preset" --config.tokenizer="$workdir/vqgan"
  score paella --groups style
  score muse --groups style
}
wuerstchen() {
  mapfile -t lane < <(half 1)
  train stage_b "stage_b:$preset" --config.tokenizer="$workdir/vqgan"
  train stage_c "stage_c:$preset" --config.stage_b="$workdir/stage_b"
  score stage_b
  score stage_c --groups style
}
[ -n "${SHARDS:-}" ] || [ -f "$shards/done" ] || timed fetch fetch
train vqgan "vqgan:$preset"
score vqgan
set -m # a process group of its own, so that it can be stopped with the training in it
tokens >"$workdir/tokens.log" 2>&1 &
beside=$!
set +m
stop_beside() { # and what it had begun: a training saves first
  kill -- "-$beside" 2>/dev/null || return 0
  wait "$beside" || true
  for _ in {1..600}; do kill -0 -- "-$beside" 2>/dev/null || return 0; sleep 0.1; done
}
trap stop_beside EXIT
wuerstchen # not before a `||`, which would let it go on behind a training that was stopped
code=0
wait "$beside" || code=$?
if [ "$code" -ne 0 ]; then # 143 and 130, of what was stopped and goes on when called again, stay those
  tail -n 5 "$workdir/tokens.log" >&2
  exit "$code"
fi
stage_seconds
"$PYTHON" launch/icon_report.py "$workdir" "${seconds[@]}"
