#!/usr/bin/env bash
# The tests, from a bare machine:
#   ./launch/test.sh                             style, types and the suite, in eight minutes
#   ./launch/test.sh slow                        what takes long and has a shorter sibling there
#   ./launch/test.sh fast                        style, types and a part of every room, in 90 seconds
#   ./launch/test.sh tests/parity --golden DIR   what pytest is given, on another set of recordings
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
# Two processes: compiling keeps one core busy, not two. Whole files, as a file's tests share
# compiled programs.
LANE=(-n 2 --dist loadfile --no-loadscope-reorder)
case "${1:-}" in
  "" | fast)
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
    FILES=()
    if [ $# -gt 0 ]; then
      mapfile -t FILES < <(sed 's/ *#.*//; /^$/d' tests/fast.txt)
      shift
    fi
    set -- "${LANE[@]}" -m "not slow" "${FILES[@]}" "$@"
    ;;
  slow) set -- "${LANE[@]}" -m slow "${@:2}" ;;
esac
exec "$PYTHON" -m pytest "$@"
