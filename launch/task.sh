#!/usr/bin/env bash
# Runs a command and writes its exit code to a file, for whoever does not get to see it:
#   launch/task.sh FILE COMMAND...
# SIGTERM goes to the whole process group or step, so the command gets it without this script, which
# waits for the end. Only a signal that came before the command was there is handed on.
set -uo pipefail
told=""
trap 'told=yes' TERM
file="$1"
"${@:2}" &
command=$!
[ -z "$told" ] || kill -TERM "$command"
wait "$command"
while kill -0 "$command" 2>/dev/null; do # a signal ends the waiting, not the command
  wait "$command"
done
wait "$command"
code=$?
echo "$code" >"$file"
exit "$code"
