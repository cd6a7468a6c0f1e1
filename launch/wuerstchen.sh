#!/usr/bin/env bash
# A small Würstchen on the embedded captioned shapes, from a bare machine to a scored report:
#   ./launch/wuerstchen.sh [WORKDIR]
# Trains Stage A (or takes TOKENIZER=RUN, e.g. the quickstart's vqgan), Stage B with the compressor,
# Stage C and the direct decoder, samples and scores. Calling it again resumes. PRESET=tiny is short.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;; esac
if [ $# -gt 1 ] || [[ "${1:-}" == -* ]]; then
  echo "error: launch/wuerstchen.sh takes one WORKDIR alone, got '$*'" >&2
  exit 2
fi
workdir="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/wuerstchen}")"
tokenizer="$(realpath -m "${TOKENIZER:-$workdir/vqgan}")"
preset="${PRESET:-shapes}"
mkdir -p "$workdir"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$ROOT/launch/stages.sh"
cd "$ROOT"

if [ -f "$workdir/report.json" ]; then
  echo "already done: $workdir/report.json, samples.png, stages.png (delete the folder to start over)"
  exit 0
fi
[ -n "${TOKENIZER:-}" ] ||
  timed stage_a "$PYTHON" -m paella_jax.train --config "configs/vqgan.py:$preset" --workdir "$tokenizer"
timed stage_b "$PYTHON" -m paella_jax.train --config "configs/stage_b.py:$preset" --workdir "$workdir/stage_b" \
  --config.tokenizer="$tokenizer"
timed stage_c "$PYTHON" -m paella_jax.train --config "configs/stage_c.py:$preset" --workdir "$workdir/stage_c" \
  --config.stage_b="$workdir/stage_b"
timed direct "$PYTHON" -m paella_jax.train --config "configs/direct_decoder.py:$preset" --workdir "$workdir/direct" \
  --config.stage_b="$workdir/stage_b"
stage_seconds
"$PYTHON" -m paella_jax.evaluate --checkpoint "$workdir/stage_c" --out "$workdir" \
  --direct "$workdir/direct" --seconds "${seconds[@]}"
echo "report: $workdir/report.json   pictures: $workdir/samples.png, $workdir/stages.png"
