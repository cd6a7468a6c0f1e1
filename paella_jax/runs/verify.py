"""Looks at a whole run folder: what is missing, damaged or foreign, and what does not fit together.

Nothing is written. Everything is read once, at the speed of SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from paella_jax.config import CheckpointError, flatten_config
from paella_jax.files.lock import WRITER, holder, read_lock
from paella_jax.files.regular import read_regular
from paella_jax.files.safetensors_file import differing_tensors
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import parse_object
from paella_jax.runs.checkpoint import state_step
from paella_jax.runs.digests import (
    APART,
    DIGESTS_FILE,
    FROZEN,
    WRITING,
    differing_files,
    how_to_go_on,
    is_list_lost,
    is_of_another_run,
    matches,
    read_digests,
)
from paella_jax.runs.finding import (
    DAMAGED,
    FOREIGN,
    MISSING,
    NOTE,
    Finding,
    config_or_nothing,
    entries_of,
    or_nothing,
)
from paella_jax.runs.folder import CONFIG_FILE, read_config
from paella_jax.runs.manifest import differing_listed, files_of, read_manifest
from paella_jax.runs.step_digests import COMMITTED, note_of, read_step_digests, wrong_parts
from paella_jax.runs.step_digests import FILE as STEP_DIGESTS
from paella_jax.runs.step_folders import is_step
from paella_jax.runs.verify_foreign import foreign
from paella_jax.runs.verify_metrics import metrics, newest
from paella_jax.runs.whole_steps import complete_steps, is_outdated, lost_files

UNFINISHED = "*.orbax-checkpoint-tmp*"


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
        _writer, _files, _arrays, _config, _checkpoints, newest, metrics, _tokenizer, foreign,
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
        if is_list_lost(folder):
            yield Finding(MISSING, DIGESTS_FILE, how_to_go_on(folder))
        else:
            yield Finding(NOTE, DIGESTS_FILE, "an older version wrote none: files are unchecked")
    else:
        wrong = differing_files(folder, content)
        begun = [name for name, was in content["files"].items() if was == WRITING]
        for name in (name for name in begun if name != FROZEN):  # its files are told by `foreign`
            what = "was being written when a process was stopped, or is of an older version"
            yield Finding(NOTE, name, f"{what}: the next training call notes it")
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

    if is_list_lost(folder):  # which is why it cannot be read, and is told
        return
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
        elif not is_step(place.name):
            yield Finding(FOREIGN, name)
        else:
            yield from _checkpoint(place, name)


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
        text = read_regular(place / COMMITTED).decode(errors="replace")
        if not (text.startswith("Checkpoint commit was successful") and text.endswith(place.name)):
            yield Finding(DAMAGED, f"{name}/{COMMITTED}")
    if content is not None:
        for file in entries_of(place):
            if file not in (*content["files"], STEP_DIGESTS, COMMITTED):
                yield Finding(FOREIGN, f"{name}/{file}")
    elif not lost:
        yield Finding(NOTE, name, "an older version wrote it: it has no digests")
    if not lost and not wrong:
        yield from _one_step(place, name)


def _is_being_removed(place: Path) -> bool:
    """Whether a checkpoint that lacks files is older than those that the run keeps."""
    keep = flatten_config(config_or_nothing(place.parent.parent)).get("checkpoint.keep")
    return is_outdated(place, complete_steps(place.parent.parent), keep)


def _one_step(place: Path, name: str) -> Iterator[Finding]:
    """Folder name, note, state and (of older runs) the data iterator say the same step."""
    said: dict[str, Any] = {"note": note_of(place).get("step")}
    for file in place.glob("data/process_*"):
        try:
            said[file.name] = parse_object(read_regular(file)).get("next_index")
        except (OSError, ValueError):
            yield Finding(DAMAGED, f"{name}/data/{file.name}")
    try:
        said["state"] = state_step(place)
    except Exception as error:  # whatever orbax raises for a file that it cannot read
        yield Finding(DAMAGED, f"{name}/state", f"cannot be read ({type(error).__name__})")
    if or_nothing(partial(is_of_another_run, note_of(place)), place.parent.parent):
        yield Finding(DAMAGED, name, "it is of another run")
    for part, step in said.items():
        if step is not None and step != int(place.name):
            yield Finding(DAMAGED, name, f"its {part} is of step {step}")


def _tokenizer(folder: Path) -> Iterator[Finding]:
    """Whether the frozen tokenizer has as many codes as the predictor was made for."""
    config = config_or_nothing(folder)
    file = folder / "frozen" / "vqgan.json"
    if config.get("method") != "tokens" or not file.is_file():
        return
    try:
        codes = parse_object(read_regular(file))["model"]["codebook_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(DAMAGED, "frozen/vqgan.json", f"cannot be read ({error!r})")
        return
    ours = flatten_config(config).get("model.codebook_size")
    if ours is not None and codes != ours:
        what = f"it has {codes} codes, the predictor {ours}"
        yield Finding(DAMAGED, "frozen/vqgan.json", what)
