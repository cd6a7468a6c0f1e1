#!/usr/bin/env bash
# The tests, from a bare machine:
#   ./launch/test.sh                             style, types and every test
#   ./launch/test.sh fast                        style, types and a part of every room, in 90 seconds
#   ./launch/test.sh tests/parity --golden DIR   what pytest is given, on another set of recordings
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
# Two processes: compiling keeps one core busy, not two. Whole files, as a file's tests share
# compiled programs.
LANE=(-n 2 --dist loadfile --no-loadscope-reorder)
if [ $# -eq 0 ] || [ "$1" = fast ]; then
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m mypy
  if [ $# -gt 0 ]; then
    mapfile -t FAST < <(sed 's/ *#.*//; /^$/d' tests/fast.txt)
    set -- "${FAST[@]}" "${@:2}"
  fi
  set -- "${LANE[@]}" "$@"
fi
exec "$PYTHON" -m pytest "$@"
