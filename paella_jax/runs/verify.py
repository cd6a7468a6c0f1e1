"""Looks at a whole run folder: what is missing, damaged or foreign, and what does not fit together.

Nothing is written. Everything is read once, at the speed of SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.config import CheckpointError, flatten_config
from paella_jax.files.lock import WRITER, holder, read_lock
from paella_jax.files.safetensors_file import differing_tensors
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import parse_json, parse_object
from paella_jax.runs.checked_lines import scan_metrics
from paella_jax.runs.checkpoint import state_step
from paella_jax.runs.digests import (
    APART,
    DIGESTS_FILE,
    OWN,
    WRITING,
    differing_files,
    is_of_another_run,
    matches,
    read_digests,
)
from paella_jax.runs.folder import (
    CONFIG_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    logged_every,
    metrics_are_lost,
    read_config,
)
from paella_jax.runs.inside import leaving_links
from paella_jax.runs.manifest import MANIFEST, differing_listed, files_of, read_manifest
from paella_jax.runs.step_digests import COMMITTED, note_of, read_step_digests, wrong_parts
from paella_jax.runs.step_digests import FILE as STEP_DIGESTS
from paella_jax.runs.whole_steps import complete_steps, is_outdated, lost_files

TIMING = "timing.json"
MISSING, DAMAGED, FOREIGN, NOTE = "missing", "damaged", "foreign", "note"
# What evaluation, cards and clusters leave in a run's folder.
RESULTS = ("*.png", "*.gif", "*.html", "*.md", "report.json", "scores.json", "curves.json",
           "sweep.json", "stages.json", "manipulations.json", ".processes")  # fmt: skip
RESULTS_BELOW = ("tasks/*",)
UNFINISHED = "*.orbax-checkpoint-tmp*"


class Finding(NamedTuple):
    """One thing to say of a folder: its kind, of which file or array, and what is wrong."""

    kind: str
    name: str
    what: str = ""


def verify_run(folder: str | Path) -> list[Finding]:
    """Everything that is wrong with a run folder; notes are no faults.

    Raises:
      CheckpointError: it is no run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if not any((folder / name).exists() for name in (CONFIG_FILE, "checkpoints", DIGESTS_FILE)):
        raise CheckpointError(f"{folder} is not a run folder (no {CONFIG_FILE})")
    looks: tuple[Callable[[Path], Iterator[Finding]], ...] = (
        _writer, _files, _arrays, _config, _checkpoints, _newest, _metrics, _tokenizer, _foreign,
    )  # fmt: skip
    return [finding for look in looks for finding in look(folder)]


def _writer(folder: Path) -> Iterator[Finding]:
    there = read_lock(folder / WRITER)
    if there is not None:
        yield Finding(NOTE, str(folder), f"is written by {holder(there)}: it may change")


def _files(folder: Path) -> Iterator[Finding]:
    """Files that are written whole."""
    try:
        manifest = read_manifest(folder)
        content = read_digests(folder)
    except CheckpointError as error:
        yield Finding(DAMAGED, DIGESTS_FILE, str(error))
        return
    if manifest is not None:
        wrong = differing_listed(folder, manifest)
    elif content is None:
        wrong = {}
        if any(note_of(step).get("digests") for step in _steps(folder)):
            yield Finding(MISSING, DIGESTS_FILE, "its files cannot be checked")
        else:
            yield Finding(NOTE, DIGESTS_FILE, "an older version wrote none: files are unchecked")
    else:
        wrong = differing_files(folder, content)
        for name in (name for name, was in content["files"].items() if was == WRITING):
            yield Finding(NOTE, name, "was being written when a process was stopped")
        for name in files_of(folder):
            if matches(name, OWN) and not matches(name, APART) and name not in content["files"]:
                yield Finding(NOTE, name, "is not noted yet: the next training call does it")
    for name, what in wrong.items():
        yield Finding(MISSING, name) if what == "is missing" else Finding(DAMAGED, name, what)


def _arrays(folder: Path) -> Iterator[Finding]:
    """Arrays of weights files."""
    for name in files_of(folder):
        if name.endswith(".safetensors") and not matches(name, APART):
            try:
                damaged = differing_tensors(folder / name)
            except ConversionError as error:
                yield Finding(DAMAGED, name, str(error))
                continue
            for array in damaged or ():
                yield Finding(DAMAGED, name, f"array {array} has another SHA-256 digest")


def _config(folder: Path) -> Iterator[Finding]:
    from paella_jax.runs.known_fields import unknown_fields

    try:
        for name in unknown_fields(read_config(folder)):
            yield Finding(FOREIGN, CONFIG_FILE, f"unknown field {name}")
    except CheckpointError as error:
        yield Finding(DAMAGED, CONFIG_FILE, str(error))


def _checkpoints(folder: Path) -> Iterator[Finding]:
    for place in sorted((folder / "checkpoints").glob("*")):
        name = place.relative_to(folder).as_posix()
        if matches(place.name, [UNFINISHED]):
            yield Finding(NOTE, name, "a save that was stopped; the next training call removes it")
        elif not place.name.isdigit():
            yield Finding(FOREIGN, name)
        else:
            yield from _checkpoint(place, name)


def _newest(folder: Path) -> Iterator[Finding]:
    """Whether the newest checkpoint, or all of them, are gone that the run's own files tell of."""
    if (folder / MANIFEST).is_file():
        return
    newest = max((int(step.name) for step in _steps(folder)), default=0)
    for file, saved in ((TIMING, _timed(folder)), (METRICS_FILE, _surely_saved(folder))):
        if saved > newest:
            what = f"the newest is of step {newest}, {file} tells that {saved} was saved"
            yield Finding(MISSING, "checkpoints", what)
            return


def _timed(folder: Path) -> int:
    """The step that the last call which came to its end saved; 0 where none is known."""
    try:
        calls = parse_json((folder / TIMING).read_bytes())
        return int(calls[-1]["steps"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _surely_saved(folder: Path) -> int:
    """The last step that must have been saved by what was measured; 0 for none.

    A save begins behind the metrics of its step, and only once the one before it is finished.
    """
    every = flatten_config(_config_or_nothing(folder)).get("checkpoint.every")
    if not isinstance(every, int) or every < 1:
        return 0
    every = logged_every(folder, every, "checkpoint.every")
    rows = scan_metrics(folder / METRICS_FILE)[0]
    return max(((int(row["step"]) - 1) // every - 1 for row in rows), default=0) * every


def _checkpoint(place: Path, name: str) -> Iterator[Finding]:
    """One step: its files and arrays, and whether they are of one step."""
    lost = lost_files(place)
    if lost and _is_being_removed(place):
        yield Finding(NOTE, name, "its removal was stopped; the next training call ends it")
        return
    for file in lost:
        yield Finding(MISSING, f"{name}/{file}")
    try:
        content = read_step_digests(place)
        wrong = [what for what in wrong_parts(place, rest=True) if "is missing" not in what]
    except CheckpointError as error:
        yield Finding(DAMAGED, f"{name}/{STEP_DIGESTS}", str(error))
        return
    for what in wrong:
        yield Finding(DAMAGED, name, what)
    if (place / COMMITTED).is_file():  # written behind the digests, and read by nobody
        text = (place / COMMITTED).read_bytes().decode(errors="replace")
        if not (text.startswith("Checkpoint commit was successful") and text.endswith(place.name)):
            yield Finding(DAMAGED, f"{name}/{COMMITTED}")
    if content is not None:
        for file in files_of(place):
            if file not in (*content["files"], STEP_DIGESTS, COMMITTED):
                yield Finding(FOREIGN, f"{name}/{file}")
    elif not lost:
        yield Finding(NOTE, name, "an older version wrote it: it has no digests")
    if not lost and not wrong:
        yield from _one_step(place, name)


def _is_being_removed(place: Path) -> bool:
    """Whether a checkpoint that lacks files is older than those that the run keeps."""
    keep = flatten_config(_config_or_nothing(place.parent.parent)).get("checkpoint.keep")
    return is_outdated(place, complete_steps(place.parent.parent), keep)


def _one_step(place: Path, name: str) -> Iterator[Finding]:
    """Folder name, note, state and (of older runs) the data iterator say the same step."""
    said: dict[str, Any] = {"note": note_of(place).get("step")}
    for file in place.glob("data/process_*"):
        try:
            said[file.name] = parse_object(file.read_bytes()).get("next_index")
        except (OSError, ValueError):
            yield Finding(DAMAGED, f"{name}/data/{file.name}")
    try:
        said["state"] = state_step(place)
    except Exception as error:  # whatever orbax raises for a file that it cannot read
        yield Finding(DAMAGED, f"{name}/state", f"cannot be read ({type(error).__name__})")
    if _or_nothing(partial(is_of_another_run, note_of(place)), place.parent.parent):
        yield Finding(DAMAGED, name, "it is of another run")
    for part, step in said.items():
        if step is not None and step != int(place.name):
            yield Finding(DAMAGED, name, f"its {part} is of step {step}")


def _metrics(folder: Path) -> Iterator[Finding]:
    """Lines of metrics against themselves and against the newest checkpoint."""
    for file in (METRICS_FILE, HISTORY_FILE):
        for number in scan_metrics(folder / file)[1]:
            yield Finding(DAMAGED, file, f"line {number}")
    rows = scan_metrics(folder / METRICS_FILE)[0]
    steps = [row["step"] for row in rows if "loss" in row]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Finding(DAMAGED, METRICS_FILE, "its steps do not ascend")
    newest = max((int(step.name) for step in _steps(folder)), default=0)
    every = flatten_config(_config_or_nothing(folder)).get("log.every")
    if (folder / MANIFEST).is_file() or not isinstance(every, int) or every < 1:
        return
    if metrics_are_lost(folder):
        yield Finding(MISSING, METRICS_FILE)
    last = max(steps, default=0)
    surely = logged_every(folder, every)
    if (folder / METRICS_FILE).is_file() and newest // every > last // every:
        what = f"ends at step {last}, the newest checkpoint is of step {newest}"
        if newest // surely > last // surely:
            yield Finding(MISSING, METRICS_FILE, what)
        else:
            yield Finding(NOTE, METRICS_FILE, f"{what}; log.every was changed in between")


def _tokenizer(folder: Path) -> Iterator[Finding]:
    """Whether the frozen tokenizer has as many codes as the predictor was made for."""
    config = _config_or_nothing(folder)
    file = folder / "frozen" / "vqgan.json"
    if config.get("method") != "tokens" or not file.is_file():
        return
    try:
        codes = parse_object(file.read_bytes())["model"]["codebook_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(DAMAGED, "frozen/vqgan.json", f"cannot be read ({error!r})")
        return
    ours = flatten_config(config).get("model.codebook_size")
    if ours is not None and codes != ours:
        what = f"it has {codes} codes, the predictor {ours}"
        yield Finding(DAMAGED, "frozen/vqgan.json", what)


def _foreign(folder: Path) -> Iterator[Finding]:
    """Files that are no part of a run folder, and links that lead out of it."""
    links = leaving_links(folder)
    for name in links:
        yield Finding(FOREIGN, name, "is a link out of the folder")
    manifest = _or_nothing(read_manifest, folder)
    listed = {**manifest.get("files", {}), **manifest.get("card", {})}
    for name in sorted({*files_of(folder)} - {*links}):
        if name in listed or matches(name, APART) or (not listed and matches(name, OWN)):
            continue
        if not matches(name, RESULTS_BELOW if "/" in name else RESULTS):
            yield Finding(FOREIGN, name)


def _steps(folder: Path) -> list[Path]:
    return [place for place in (folder / "checkpoints").glob("*") if place.name.isdigit()]


def _config_or_nothing(folder: Path) -> Any:
    return _or_nothing(read_config, folder)


def _or_nothing(read: Callable[[Path], Any], folder: Path) -> Any:
    """What a file says; nothing where that is told already."""
    try:
        return read(folder) or {}
    except CheckpointError:
        return {}
