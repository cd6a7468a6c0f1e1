#!/usr/bin/env bash
# From a bare machine to images that match their captions, on CPU or whatever JAX finds:
#   ./launch/quickstart.sh [WORKDIR]
# Trains a tokenizer and a small Paella on the embedded captioned shapes, samples, scores. Calling
# it again resumes what was interrupted and repeats nothing that is finished.
# PRESET=tiny is the short run that continuous integration uses.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;; esac
if [ $# -gt 1 ] || [[ "${1:-}" == -* ]]; then
  echo "error: launch/quickstart.sh takes one WORKDIR alone, got '$*'" >&2
  exit 2
fi
workdir="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/quickstart}")"
preset="${PRESET:-shapes}"
tokenizer_preset="${TOKENIZER_PRESET:-${preset%_long}}"
mkdir -p "$workdir"

begin="$SECONDS"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/launch/stages.sh"
[ -f "$workdir/seconds" ] || echo "install=$((SECONDS - begin))" >"$workdir/seconds"
cd "$ROOT"

if [ -f "$workdir/report.json" ]; then
  echo "already done: $workdir/report.json, samples.png, training.png (delete the folder to start over)"
  exit 0
fi
timed tokenizer "$PYTHON" -m paella_jax.train --config "configs/vqgan.py:$tokenizer_preset" --workdir "$workdir/vqgan"
timed predictor "$PYTHON" -m paella_jax.train --config "configs/paella.py:$preset" --workdir "$workdir/paella" \
  --config.tokenizer="$workdir/vqgan"
stage_seconds
"$PYTHON" -m paella_jax.evaluate --checkpoint "$workdir/paella" --out "$workdir" --seconds "${seconds[@]}"
echo "report: $workdir/report.json   pictures: $workdir/samples.png, $workdir/training.png"
echo "sample: $PYTHON -m paella_jax.sample --checkpoint $workdir/paella --prompt \"a large red circle at the top left on a white background\""
