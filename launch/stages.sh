#!/usr/bin/env bash
# What the scripts that train several stages share; sourced after $workdir is set.
timed() { # timed STAGE COMMAND...: adds the seconds of this and earlier calls to WORKDIR/seconds
  local stage="$1" begin="$SECONDS"
  shift
  "$@"
  echo "$stage=$((SECONDS - begin))" >>"$workdir/seconds"
}

stage_seconds() { # sums WORKDIR/seconds into the array `seconds` of STAGE=SECONDS
  mapfile -t seconds < <(awk -F= '{s[$1] += $2} END {for (k in s) print k "=" s[k]}' "$workdir/seconds")
}
