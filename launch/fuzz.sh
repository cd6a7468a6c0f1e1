#!/usr/bin/env bash
# Damaged files from outside, of seven kinds, read for MINUTES (default 10) from a bare machine:
#   ./launch/fuzz.sh [MINUTES [SEED]]
# Counts by kind what was read, refused in one clear line, or unclear; exit code 1 if anything was.
# Unclear inputs are kept in build/fuzz/KIND, with WHAT.txt beside them.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;; esac
if [ $# -gt 2 ]; then
  echo "error: launch/fuzz.sh takes MINUTES and SEED alone, got '$*'" >&2
  exit 2
fi
if [[ ! "${1:-10}" =~ ^[0-9]+(\.[0-9]+)?$ || ! "${2:-1}" =~ ^[0-9]+$ ]]; then
  echo "error: MINUTES must be a number and SEED a whole one, got '$*'" >&2
  exit 2
fi
minutes="${1:-10}"
seed="${2:-$RANDOM}"
source "$(realpath "$(dirname "${BASH_SOURCE[0]}")")/setup.sh"
cd "$ROOT"
echo "seed $seed"
export PYTHONPATH="$ROOT:$ROOT/tests" JAX_PLATFORMS=cpu
exec "$PYTHON" -W ignore tests/fuzzing.py --minutes "$minutes" --trials 1000000000 --seed "$seed" --keep build/fuzz
