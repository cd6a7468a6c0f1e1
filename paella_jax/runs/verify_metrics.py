"""What `verify` says of a run's metrics: against themselves and against its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from paella_jax.config import flatten_config
from paella_jax.files.digests import digest_of_parts
from paella_jax.files.regular import read_regular
from paella_jax.outside import listed, parse_json
from paella_jax.runs.checked_lines import scan_metrics
from paella_jax.runs.finding import DAMAGED, MISSING, NOTE, Finding, config_or_nothing
from paella_jax.runs.folder import HISTORY_FILE, METRICS_FILE, logged_every, metrics_are_lost
from paella_jax.runs.manifest import MANIFEST
from paella_jax.runs.step_digests import note_of
from paella_jax.runs.step_folders import newest_step

TIMING = "timing.json"


def metrics(folder: Path) -> Iterator[Finding]:
    """Lines of metrics against themselves and against the newest checkpoint."""
    rows, torn = scan_metrics(folder / METRICS_FILE)
    for file, numbers in (
        (METRICS_FILE, torn), (HISTORY_FILE, scan_metrics(folder / HISTORY_FILE)[1]),
    ):  # fmt: skip
        for number in numbers:
            yield Finding(DAMAGED, file, f"line {number}")
    steps = [int(row["step"]) for row in rows if "loss" in row]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Finding(DAMAGED, METRICS_FILE, "its steps do not ascend")
    if (folder / MANIFEST).is_file():
        return
    if metrics_are_lost(folder):
        yield Finding(MISSING, METRICS_FILE)
    elif (noted := _noted(folder)) is not None:
        if not torn and not _begins_with(folder, noted):
            newest = newest_step(folder)
            what = f"lines are not those that were there when checkpoint {newest} was saved"
            yield Finding(DAMAGED, METRICS_FILE, what)
    elif (folder / METRICS_FILE).is_file():
        yield from _gaps(folder, steps, len(torn))


def _noted(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint's note says of the metrics; None of older versions'."""
    noted = note_of(folder / "checkpoints" / str(newest_step(folder))).get("metrics")
    return noted if isinstance(noted, dict) else None


def _begins_with(folder: Path, noted: dict[str, Any]) -> bool:
    """Whether the metrics begin with what they were; lines were only added since."""
    size, file = noted.get("bytes"), folder / METRICS_FILE
    if type(size) is not int or not file.is_file() or file.stat().st_size < size:
        return False
    return digest_of_parts(folder, [(METRICS_FILE, 0, size)]) == noted.get("sha256")


def _gaps(folder: Path, steps: list[int], torn: int) -> Iterator[Finding]:
    """Steps up to the newest checkpoint that must have a line and have none.

    Those of as few as the torn lines may be theirs, which are told already.
    """
    every = flatten_config(config_or_nothing(folder)).get("log.every")
    if not isinstance(every, int) or every < 1:
        return
    newest, last, surely = newest_step(folder), max(steps, default=0), logged_every(folder, every)
    ends = f"ends at step {last}, the newest checkpoint is of step {newest}"
    lacking = sorted({*range(surely, newest + 1, surely)} - {*steps})
    if len(lacking) > torn:
        told = ends if lacking[0] > last else f"has no line of step {listed(lacking)}"
        yield Finding(MISSING, METRICS_FILE, told)
    elif not lacking and newest // every > last // every:
        yield Finding(NOTE, METRICS_FILE, f"{ends}; log.every was changed in between")


def newest(folder: Path) -> Iterator[Finding]:
    """Whether the newest checkpoint, or all of them, are gone that the run's own files tell of."""
    if (folder / MANIFEST).is_file():
        return
    there = newest_step(folder)
    for file, saved in ((TIMING, _timed(folder)), (METRICS_FILE, _surely_saved(folder))):
        if saved > there:
            what = f"the newest is of step {there}, {file} tells that {saved} was saved"
            yield Finding(MISSING, "checkpoints", what)
            return


def _timed(folder: Path) -> int:
    """The step that the last call which came to its end saved; 0 where none is known."""
    try:
        calls = parse_json(read_regular(folder / TIMING))
        return int(calls[-1]["steps"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _surely_saved(folder: Path) -> int:
    """The last step that must have been saved by what was measured; 0 for none.

    A save begins behind the metrics of its step, and only once the one before it is finished.
    """
    every = flatten_config(config_or_nothing(folder)).get("checkpoint.every")
    if not isinstance(every, int) or every < 1:
        return 0
    every = logged_every(folder, every, "checkpoint.every")
    rows = scan_metrics(folder / METRICS_FILE)[0]
    return max(((int(row["step"]) - 1) // every - 1 for row in rows), default=0) * every
