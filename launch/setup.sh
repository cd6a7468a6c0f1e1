#!/usr/bin/env bash
# Makes .venv and installs the package into it. Sourced by the other scripts; runs once, and again
# only when pyproject.toml changes. Sets $PYTHON.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${PAELLA_VENV:-$ROOT/.venv}"

find_python() {
  local candidate
  for candidate in ${PAELLA_PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one or set PAELLA_PYTHON" >&2
  return 1
}

wanted="$(cksum <"$ROOT/pyproject.toml")"
if [ "$(cat "$VENV/.installed" 2>/dev/null || true)" != "$wanted" ]; then
  python="$(find_python)"
  echo "installing paella_jax into $VENV (once, about a minute)" >&2
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "${ROOT}[test,demo]"
  echo "$wanted" >"$VENV/.installed"
fi
PYTHON="$VENV/bin/python"
