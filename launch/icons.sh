#!/usr/bin/env bash
# The icon benchmark: captioned 32-pixel icons, from tar shards to scored reports of all families:
#   ./launch/icons.sh SHARDS [WORKDIR]
# SHARDS is a folder of webdataset shards, train-*.tar and heldout-*.tar. Trains a tokenizer, Paella,
# MUSE and a Würstchen (Stages B and C), and scores what they draw for the held-out captions. Calling
# it again resumes. PRESET=folder64 takes a night.
set -euo pipefail
case "${1:-}" in -h | --help | "") sed -n '2,6s/^# //p' "$0"; exit 0 ;; esac
shards="$(realpath "$1")"
workdir="$(realpath -m "${2:-$(dirname "${BASH_SOURCE[0]}")/../runs/icons}")"
preset="${PRESET:-folder32}"
mkdir -p "$workdir"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/launch/stages.sh"
cd "$ROOT"

train() { # NAME CONFIG [overrides]
  timed "$1" "$PYTHON" -m paella_jax.train --config "$2" --workdir "$workdir/$1" --config.data.shards="$shards" "${@:3}"
}
score() { # NAME
  [ -f "$workdir/$1/scores/scores.json" ] ||
    "$PYTHON" -m paella_jax.evaluate --checkpoint "$workdir/$1" --data "$shards" --out "$workdir/$1/scores"
}
train vqgan "vqgan:$preset"
train paella "paella:$preset" --config.tokenizer="$workdir/vqgan"
train muse "muse:$preset" --config.tokenizer="$workdir/vqgan"
train stage_b "stage_b:$preset" --config.tokenizer="$workdir/vqgan"
train stage_c "stage_c:$preset" --config.stage_b="$workdir/stage_b"
for run in vqgan paella muse stage_c; do score "$run"; done
