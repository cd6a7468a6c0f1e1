#!/usr/bin/env bash
# Runs a command and writes its exit code to a file, for whoever does not get to see it:
#   launch/task.sh FILE COMMAND...
# SIGTERM goes to the whole process group or step, so the command gets it without this script, which
# waits for the end. Only a signal that came before the command was there is handed on.
set -uo pipefail
told=0
trap 'told=$((told + 1))' TERM
file="$1"
"${@:2}" &
command=$!
[ "$told" = 0 ] || kill -TERM "$command"
while
  before="$told"
  wait "$command"
  code=$?
  [ "$told" != "$before" ] # the signal ended the waiting, not the command
do :; done
# Bash forgets the code of a command that ends while the trap runs: it ended by that signal.
if [ "$told" != 0 ] && { [ "$code" -lt 0 ] || [ "$code" = 127 ]; }; then code=143; fi
echo "$code" >"$file"
exit "$code"
