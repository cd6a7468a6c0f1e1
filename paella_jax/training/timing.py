"""How long the calls of a run took and what for: `timing.json` in its folder, one entry per call.

Goodput is the share of a run's seconds that went into updates which count. The rest is start-up,
compiling, saving, previews, waiting for data, and updates that a kill lost and the next call did
again. A call that was killed cannot write its entry; the next one makes it up from the call's last
line of metrics.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from paella_jax.config import CheckpointError
from paella_jax.outside import parse_json
from paella_jax.runs.digests import check_noted, tell_once, write_noted

FILE = "timing.json"
SPANS = ("startup", "compile", "save", "preview", "data")
LOST = "lost"
Call = Mapping[str, Any]


class Timed(Protocol):
    """What is recorded of a call: a `RunResult` of the loop."""

    step: int
    seconds: float
    compile_seconds: float
    spent: dict[str, float]


class Clock:
    """The seconds of one call, by what they go into; what is left over are updates."""

    def __init__(self, before: Sequence[Call] = ()) -> None:
        """Starts now.

        Args:
          before: entries of earlier calls of the run.
        """
        self.began = time.perf_counter()
        self.before: Sequence[Call] = before
        self.spent = dict.fromkeys(SPANS, 0.0)

    def started(self, compile_seconds: float) -> None:
        """The first update begins: all until now was start-up, but for compiling."""
        self.spent["startup"] = self.seconds() - compile_seconds
        self.spent["compile"] = compile_seconds

    @contextmanager
    def spending(self, name: str) -> Iterator[None]:
        """What the block takes goes into one of `SPANS`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] += time.perf_counter() - began

    def seconds(self) -> float:
        """Since the call began."""
        return time.perf_counter() - self.began

    def entry(self) -> dict[str, float]:
        """The call so far, for `timing.json`."""
        seconds = self.seconds()
        spent = {f"{name}_seconds": round(value, 2) for name, value in self.spent.items()}
        updates = max(seconds - sum(self.spent.values()), 0.0)
        return {"seconds": round(seconds, 2), **spent, "update_seconds": round(updates, 2)}

    def told(self) -> dict[str, float]:
        """For a line of metrics: seconds of this call, goodput of all calls so far."""
        now = self.entry()
        return {"seconds": now["seconds"], "goodput": goodput([*self.before, now])}


def goodput(calls: Sequence[Call]) -> float:
    """The share of all calls' seconds that went into updates which count."""
    total = sum(call["seconds"] for call in calls)
    return round(sum(_useful(call) for call in calls) / total, 4) if total > 0 else 0.0


def _useful(call: Call) -> float:
    # Entries of older versions know of compiling alone.
    updates = call.get("update_seconds", call["seconds"] - call.get("compile_seconds", 0.0))
    return max(updates - call.get(f"{LOST}_seconds", 0.0), 0.0)


def account(workdir: Path) -> dict[str, float]:
    """All calls of a run together, for its report; empty where nothing is recorded."""
    calls = read_calls(workdir)
    if not calls:
        return {}
    names = ("seconds", *(f"{name}_seconds" for name in (*SPANS, LOST)), f"{LOST}_updates")
    sums = {name: round(sum(call.get(name, 0) for call in calls), 2) for name in names}
    return {"calls": len(calls), "goodput": goodput(calls), **sums}


def describe_account(told: Mapping[str, float]) -> str:
    """`account` in a line."""
    parts = ", ".join(f"{name} {told[f'{name}_seconds']:.1f} s" for name in (*SPANS, LOST))
    return (
        f"goodput {told['goodput']:.1%} of {told['seconds']:.1f} s in {told['calls']} calls "
        f"({parts}; {told['lost_updates']} updates done again)"
    )


def record_seconds(workdir: Path, result: Timed) -> dict[str, float]:
    """Adds a call's time to the run's file and returns the entry."""
    note = {
        "steps": result.step,
        "seconds": round(result.seconds, 2),
        "compile_seconds": round(result.compile_seconds, 2),
    } | result.spent
    write_noted(workdir, FILE, json.dumps([*read_calls(workdir), note], indent=2))
    return note


def record_killed(workdir: Path, rows: Sequence[Mapping[str, Any]], resumed: int) -> None:
    """Adds the entry of a call that was killed, where there was one.

    Args:
      workdir: of the run.
      rows: its metrics, those behind the checkpoint too.
      resumed: step of the checkpoint that this call goes on from.
    """
    calls = read_calls(workdir)
    last = next((row for row in reversed(rows) if "goodput" in row), None)
    begun = int(calls[-1]["steps"]) if calls else 0
    if last is None or last["step"] <= begun:
        return
    before = sum(call["seconds"] for call in calls)
    useful = last["goodput"] * (before + last["seconds"]) - sum(_useful(call) for call in calls)
    updates = min(max(useful, 0.0), last["seconds"])
    again = max(int(last["step"]) - resumed, 0)
    entry = {
        "steps": resumed, "seconds": last["seconds"], "update_seconds": round(updates, 2),
        f"{LOST}_updates": again,
        f"{LOST}_seconds": round(updates * min(again / (last["step"] - begun), 1.0), 2),
        "killed": True,
    }  # fmt: skip
    write_noted(workdir, FILE, json.dumps([*calls, entry], indent=2))


def total_seconds(workdir: Path) -> float:
    """Seconds of all recorded calls."""
    return float(sum(call["seconds"] for call in read_calls(workdir)))


def read_calls(workdir: Path) -> list[dict[str, Any]]:
    """The entries of a run's calls; none where the file is gone or damaged, which is told."""
    file = workdir / FILE
    try:
        check_noted(workdir, lambda name: name == FILE and file.is_file())
        return parse_json(file.read_bytes()) if file.is_file() else []
    except (CheckpointError, ValueError) as error:  # at the end of a training, which counts
        tell_once(f"{file} is begun anew, its seconds are lost: {error}")
        return []
