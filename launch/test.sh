#!/usr/bin/env bash
# The whole test suite from a bare machine; arguments go to pytest:
#   ./launch/test.sh
#   ./launch/test.sh tests/parity --golden DIR
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
  "$PYTHON" -m ruff check .
  "$PYTHON" -m ruff format --check .
  "$PYTHON" -m mypy
  # Two processes, whole files each: compiling keeps one core busy, not two.
  set -- -n 2 --dist loadfile
fi
exec "$PYTHON" -m pytest "$@"
