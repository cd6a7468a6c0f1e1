#!/usr/bin/env bash
# Makes .venv and installs the package into it, with JAX for the GPU or TPU that it finds. Sourced by
# the other scripts; runs once, and again only when pyproject.toml or the machine changes. Sets $PYTHON.
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

# Whether there is a TPU's chip, by the numbers that JAX knows them by: not every TPU VM has /dev/accel*, and Google's
# network cards and disks have the same vendor.
has_tpu() {
  local vendor
  for vendor in "${PAELLA_PCI:-/sys/bus/pci/devices}"/*/vendor; do
    grep -qsx 0x1ae0 "$vendor" && grep -qsxE '0x00(27|56|5e|62|63|6f|76)' "${vendor%vendor}device" && return
  done
  return 1
}

# The extra with JAX for this machine: cuda13 or cuda12 by NVIDIA's driver, tpu, or nothing (CPU).
find_accelerator() {
  local driver
  if driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" && [ -n "$driver" ]; then
    if [ "${driver%%.*}" -ge 580 ]; then echo cuda13; else echo cuda12; fi
  elif compgen -G "${PAELLA_DEVICES:-/dev}/accel*" >/dev/null || [ -n "${TPU_ACCELERATOR_TYPE:-}" ] || has_tpu; then
    echo tpu
  fi
}

extra="${PAELLA_EXTRA-$(find_accelerator)}"
constraints="${PAELLA_CONSTRAINTS:-}" # a file of versions
wanted="$(cat "$ROOT/pyproject.toml" ${constraints:+"$constraints"} | cksum) $extra"
if [ "$(cat "$VENV/.installed" 2>/dev/null || true)" != "$wanted" ]; then
  python="$(find_python)"
  echo "installing paella_jax for ${extra:-CPU} into $VENV (once, about a minute; PAELLA_EXTRA chooses: cuda12, cuda13, tpu or nothing)" >&2
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  # Python compiles what it imports as it goes; compiling every file of every package took half of the time.
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile ${constraints:+-c "$constraints"} \
    -e "${ROOT}[test${extra:+,$extra}]"
  echo "$wanted" >"$VENV/.installed"
fi
PYTHON="$VENV/bin/python"
