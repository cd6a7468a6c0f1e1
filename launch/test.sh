#!/usr/bin/env bash
# The tests, from a bare machine:
#   ./launch/test.sh                             style, types and the suite, in eight minutes
#   ./launch/test.sh slow                        what takes long and has a shorter sibling there
#   ./launch/test.sh fast                        style, types and a part of every room, in 90 seconds
#   ./launch/test.sh oldest                      that part on the oldest versions, in .venv-oldest
#   ./launch/test.sh tests/parity --golden DIR   what pytest is given, on another set of recordings
set -euo pipefail
launch="$(realpath "$(dirname "${BASH_SOURCE[0]}")")"
if [ "${1:-}" = oldest ]; then
  export PAELLA_VENV="${PAELLA_VENV:-$launch/../.venv-oldest}" PAELLA_CONSTRAINTS="$launch/oldest.txt"
fi
source "$launch/setup.sh"
cd "$ROOT"
# Two processes: compiling keeps one core busy, not two. Whole files, as a file's tests share
# compiled programs.
LANE=(-n 2 --dist loadfile --no-loadscope-reorder)
mapfile -t FAST < <(sed 's/ *#.*//; /^$/d' tests/fast.txt)
style() {
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m mypy
}
case "${1:-}" in
  "")
    style
    set -- "${LANE[@]}" -m "not slow"
    ;;
  fast)
    style
    set -- "${LANE[@]}" -m "not slow" "${FAST[@]}" "${@:2}"
    ;;
  oldest) set -- "${LANE[@]}" -m "not slow" "${FAST[@]}" "${@:2}" ;;
  slow) set -- "${LANE[@]}" -m slow "${@:2}" ;;
esac
exec "$PYTHON" -m pytest "$@"
