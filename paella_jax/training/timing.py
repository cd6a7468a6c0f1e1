"""How long the calls of a run took: `timing.json` in its folder, one entry per call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paella_jax.config import CheckpointError
from paella_jax.outside import parse_json
from paella_jax.runs.digests import check_noted, write_noted
from paella_jax.training.loop import RunResult
from paella_jax.training.metrics import report

FILE = "timing.json"


def record_seconds(workdir: Path, result: RunResult) -> dict[str, float]:
    """Adds a call's time to the run's file and returns the entry."""
    note = {
        "steps": result.step,
        "seconds": round(result.seconds, 1),
        "compile_seconds": round(result.compile_seconds, 1),
    }
    write_noted(workdir, FILE, json.dumps([*_calls(workdir), note], indent=2))
    return note


def total_seconds(workdir: Path) -> float:
    """Seconds of all recorded calls."""
    return float(sum(call["seconds"] for call in _calls(workdir)))


def _calls(workdir: Path) -> list[dict[str, Any]]:
    file = workdir / FILE
    try:
        check_noted(workdir, lambda name: name == FILE and file.is_file())
        return parse_json(file.read_bytes()) if file.is_file() else []
    except (CheckpointError, ValueError) as error:  # at the end of a training, which counts
        report(f"{file} is begun anew, its seconds are lost: {error}")
        return []
