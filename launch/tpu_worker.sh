#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every worker of a slice:
#   launch/tpu_worker.sh install            Python and the package, once per pyproject.toml
#   launch/tpu_worker.sh start ARGUMENTS    trains, apart from the connection; joins a training that runs
#   launch/tpu_worker.sh stop               SIGTERM, and waits until it has saved
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p logs
python="${PYTHON:-.venv/bin/python}"

running() { [ -f logs/pid ] && kill -0 "$(cat logs/pid)" 2>/dev/null; }

install() { # the images have an older Python than is needed: uv brings one
  local wanted
  wanted="$(cksum <pyproject.toml)"
  [ "$(cat .venv/.installed 2>/dev/null || true)" != "$wanted" ] || return 0
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
  echo "$wanted" >.venv/.installed
}

begin() { # the exit code goes to a file, since the connection may be gone by then
  rm -f logs/exit_code
  touch logs/rank.log # for who follows it before it is written to
  setsid nohup launch/task.sh logs/exit_code "$python" -m paella_jax.train "$@" >>logs/rank.log 2>&1 </dev/null &
  echo $! >logs/pid
}

case "${1:-}" in
  install) install ;;
  start)
    source launch/env_tpu.sh
    export PYTHONUNBUFFERED=1 # a log that shows the last line before a crash
    running || begin "${@:2}"
    tail -n 20 -s 0.2 -f --pid="$(cat logs/pid)" logs/rank.log
    exit "$(cat logs/exit_code 2>/dev/null || echo 1)"
    ;;
  stop)
    if running; then
      kill -TERM -- "-$(cat logs/pid)" # its process group
      while running; do sleep 1; done
    fi
    ;;
  *)
    echo "error: usage: launch/tpu_worker.sh install | start ARGUMENTS | stop" >&2
    exit 2
    ;;
esac
