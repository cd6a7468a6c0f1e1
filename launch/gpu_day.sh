#!/usr/bin/env bash
# What one GPU does with every family, smallest first, in 25 minutes:
#   ./launch/gpu_day.sh [FOLDER] [MINUTES]
# FOLDER (default runs/gpu_day) gets a JSON file for each line and report.md; a stopped call goes on
# where it was. Compiling is most of the time, and what was compiled once is kept. PEER=FILE times
# another program beside the 1B Paella's sampler (launch/peer_paella_torch.py). At the deadline the
# row that is being measured is given up, which takes up to 20 s more, and report.md has those
# before. It was never run whole on a GPU: whether 25 minutes are enough is not known.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,8s/^# //p' "$0"; exit 0 ;; esac
if [ $# -gt 2 ] || [[ "${1:-}" == -* ]]; then
  echo "error: launch/gpu_day.sh takes FOLDER and MINUTES alone, got '$*'" >&2
  exit 2
fi
minutes="${2:-25}"
if [[ ! "$minutes" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: MINUTES must be a whole number of at least 1, not '$minutes'" >&2
  exit 2
fi
out="$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../runs/gpu_day}")"
[ -z "${PEER:-}" ] || PEER="$(realpath -m "$PEER")"
source "$(realpath "$(dirname "${BASH_SOURCE[0]}")")/setup.sh"
cd "$ROOT"
deadline=$(($(date +%s) + 60 * minutes))
mkdir -p "$out"
# Room for what compiling tries out, and for a peer.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.8}"
measured=0 tried=0
measure() { # NAME FLAGS...
  local name="$1" left=$((deadline - $(date +%s)))
  local file="$out/$1.json" before
  shift
  if [ "$left" -lt 30 ]; then
    echo "no time left for $name" >&2
    return
  fi
  tried=$((tried + 1))
  echo "== $name" >&2
  before="$(cksum "$file" 2>/dev/null || true)"
  # INT ends it with its table; while XLA compiles nothing hears it, so KILL follows.
  if timeout -s INT -k 20 "$left" "$PYTHON" -m paella_jax.benchmark --seconds 3 --out "$file" "$@" \
    >"$out/$name.txt" 2>"$out/$name.log"; then
    measured=$((measured + 1))
    return
  fi
  echo "$name ended early: see $out/$name.log" >&2
  [ "$before" = "$(cksum "$file" 2>/dev/null || true)" ] || measured=$((measured + 1))
}
LARGE=(--config paella:1b --config.objective.mask_padding=True)
FUSED=(--config.model.attention_dropout=output --config.model.remat_keeps=products)
measure small --config paella:shapes --config muse:shapes --config.precision=bfloat16 \
  --work forward,sample,encoded
measure tokenizer --config vqgan:f4 --config.batch_size=32 --work tokenizer,train
measure amused --config muse:amused_256 --work sample --batch 1,16
measure paella_1b "${LARGE[@]}" --work forward,sample --batch 1,4,16 ${PEER:+--peer "$PEER"}
measure paella_1b_train "${LARGE[@]}" "${FUSED[@]}" --config.batch_size=64 --work encoded
measure wuerstchen --config stage_c:v2 --config stage_b:v2 --config.data.image_size=1024 --work sample --batch 1,4
measure muse_632m --config muse:632m --config.batch_size=32 --work encoded,sample --batch 1,16
measure paella_1b_kernels "${LARGE[@]}" --work sample --batch 16 \
  --sweep model.attention=xla,cudnn --sweep model.depthwise=convolution,shifts
measure paella_1b_keys "${LARGE[@]}" "${FUSED[@]}" --config.batch_size=64 --work encoded \
  --sweep objective.dropout_generator=threefry,rbg
measure paella_1b_remat "${LARGE[@]}" "${FUSED[@]}" --work encoded --sweep batch_size=32,64,128 \
  --sweep model.remat_keeps=nothing,products
measure paella_1b_whole "${LARGE[@]}" "${FUSED[@]}" --config.batch_size=64 --work train,encode \
  --sweep text.attention=xla,cudnn
shopt -s nullglob
files=("$out"/*.json)
# From the files, which also have what earlier calls measured, and what a killed one did.
if [ "${#files[@]}" -gt 0 ]; then
  "$PYTHON" -m paella_jax.benchmark --table "${files[@]}" >"$out/report.md"
  cat "$out/report.md"
fi
if [ "$tried" -gt 0 ] && [ "$measured" -eq 0 ]; then
  echo "error: none of $tried measurements left a row: see $out/*.log" >&2
  exit 1
fi
