"""The digests of one checkpoint: `digests.json` in its folder, there before the step counts.

orbax puts the arrays one after another into a few data files and keeps an index of where each one
lies; the index is read for it. So every array has a digest of its own, and who reads some of them
checks those alone. All other files, and what no array has of a data file, have theirs: each byte is
read once. Process 0 digests what all processes wrote, in the thread that finishes the save; when a
run is resumed each process checks a share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paella_jax.config import CheckpointError
from paella_jax.files.atomic import write_atomically
from paella_jax.files.digests import (
    Version,
    check_list,
    describe,
    digest_of_parts,
    from_sealed_json,
    in_threads,
    problem,
    to_sealed_json,
    version,
)
from paella_jax.files.regular import read_regular
from paella_jax.outside import parse_json
from paella_jax.runs.step_folders import step_folders

if TYPE_CHECKING:
    from paella_jax.runs.array_places import Part

FILE = "digests.json"
FORMAT = 1
STATE = "state"
NOTE = "note/metadata"  # every version wrote it
COMMITTED = "commit_success.txt"  # written last by orbax, never read
METADATA = "_CHECKPOINT_METADATA"
LATER = "commit_timestamp_nsecs"  # what orbax adds to it behind us


def write_step_digests(folder: Path, step: int) -> None:
    """Digests what lies in the folder of a checkpoint that is written but for its name."""
    from paella_jax.runs.array_places import array_places, between

    arrays = array_places(folder / STATE, STATE)
    shared = {file for parts in arrays.values() for file, _, _ in parts}
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    names = [name for name in names if name not in (FILE, COMMITTED)]

    def entry(name: str) -> dict[str, Any]:
        if name not in shared:
            return _described(folder / name)
        size = (folder / name).stat().st_size
        return {"bytes": size, "rest": digest_of_parts(folder, between(name, size, arrays))}

    files = dict(zip(names, in_threads(entry, names), strict=True))
    found = in_threads(lambda parts: digest_of_parts(folder, parts), arrays.values())
    listed = {
        name: {"at": parts, "sha256": sha}
        for (name, parts), sha in zip(arrays.items(), found, strict=True)
    }
    content = {"format": FORMAT, "step": step, "files": files, "arrays": listed}
    write_atomically(folder / FILE, to_sealed_json(content))


def read_step_digests(folder: Path) -> dict[str, Any] | None:
    """What is noted of a checkpoint; None where nothing is.

    Raises:
      CheckpointError: the list is damaged or of a newer form.
    """
    try:
        key = version(folder / FILE)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # a link to itself
        raise CheckpointError(f"{folder / FILE} is damaged ({error})") from error
    try:
        return _read(key)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=8)
def _read(key: Version) -> dict[str, Any]:
    """The list in one version of a file."""
    file = Path(key[0])
    try:
        content = from_sealed_json(read_regular(file))
        names = set(content["files"])
        for known in content["arrays"].values():
            known["at"] = [(str(name), int(start), int(size)) for name, start, size in known["at"]]
            names |= {name for name, _, _ in known["at"]}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r})") from error
    check_list(content, file, FORMAT, names)
    return content


def absent_files(folder: Path) -> list[str]:
    """Noted files that are not there, without reading any; none where nothing is noted.

    A list that is gone is one of them where the note beside the state says that there was one, or
    cannot be read: only older versions wrote none, and they say so.
    """
    try:
        content = read_step_digests(folder)
    except CheckpointError:
        return []  # told by who reads the checkpoint
    if content is not None:
        return [name for name in content["files"] if not (folder / name).is_file()]
    note = note_of(folder)
    return [FILE] if note.get("digests") or not note else []


def note_of(folder: Path) -> dict[str, Any]:
    """The small JSON note beside a checkpoint's state; empty where there is none to read."""
    try:
        note = parse_json(read_regular(folder / NOTE))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def run_of_steps(workdir: Path) -> str:
    """The run that a folder's newest checkpoint is of that says so; else empty."""
    newest_first = sorted(step_folders(workdir), key=lambda place: -int(place.name))
    named = (note_of(place).get("run", "") for place in newest_first)
    return next((str(run) for run in named if run), "")


def steps_have_digests(workdir: Path) -> bool:
    """Whether a checkpoint of a folder is of a version that also began the folder's own list."""
    return any(note_of(place).get("digests") for place in step_folders(workdir))


def check_step(
    folder: Path,
    wanted: Callable[[str], bool] = lambda array: True,
    share: tuple[int, int] = (0, 1),
    rest: bool = False,
) -> bool:
    """Compares a checkpoint with its digests.

    Args:
      folder: of the step.
      wanted: which arrays to look at, by names like "params.predictor.conv.kernel".
      share: this process and the number of those that each check a part.
      rest: look at what no array has of the data files too, which is never read.

    Returns:
      Whether it has digests; older ones have none.

    Raises:
      CheckpointError: naming each file and array that is not what was written.
    """
    wrong = wrong_parts(folder, wanted, share, rest)
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise CheckpointError(shown)
    return (folder / FILE).is_file()


def wrong_parts(
    folder: Path,
    wanted: Callable[[str], bool] = lambda array: True,
    share: tuple[int, int] = (0, 1),
    rest: bool = False,
) -> list[str]:
    """What `check_step` finds, each in a few words. Raises as `read_step_digests`."""
    content = read_step_digests(folder)
    if content is None:
        return []
    wrong = [] if folder.name == str(content["step"]) else [f"it is of step {content['step']}"]
    mine = slice(share[0], None, share[1])
    files = list(content["files"].items())[mine]
    places = {name: known["at"] for name, known in content["arrays"].items()} if rest else None
    found = in_threads(lambda item: _problem(folder, item[0], item[1], places), files)
    wrong += [f"{name} {what}" for (name, _), what in zip(files, found, strict=True) if what]
    arrays = [item for item in content["arrays"].items() if wanted(item[0])][mine]
    now = in_threads(lambda item: _digest_of_array(folder, item[1]["at"]), arrays)
    wrong += [
        f"array {name.replace('.', '/')} in {known['at'][0][0]} has another SHA-256 digest"
        for (name, known), sha in zip(arrays, now, strict=True)
        if sha != known["sha256"]
    ]
    return wrong


def _digest_of_array(folder: Path, parts: list[Part]) -> str:
    try:
        whole = all((folder / name).is_file() for name, _, _ in parts)  # a pipe would never end
        return digest_of_parts(folder, parts) if whole else ""
    except OSError:
        return ""  # its file is told as missing


def _problem(
    folder: Path, name: str, known: dict[str, Any], places: dict[str, list[Part]] | None
) -> str:
    """What is wrong with a noted file; of one with arrays, what no array has, given `places`."""
    file = folder / name
    if "rest" in known:
        known = known | {"sha256": known["rest"]}
        if places is None:
            return problem(file, known, lambda file: known["rest"])
        from paella_jax.runs.array_places import between

        parts = between(name, known["bytes"], places)
        return problem(file, known, lambda file: digest_of_parts(folder, parts))
    if name == METADATA and file.is_file():
        return "" if _described(file)["sha256"] == known["sha256"] else "is not what was written"
    return problem(file, known)


def _described(file: Path) -> dict[str, Any]:
    if file.name != METADATA:
        return describe(file)
    try:
        content = parse_json(read_regular(file))
        content.pop(LATER, None)
        text = json.dumps(content, sort_keys=True)
    except (ValueError, AttributeError):
        text = ""  # damaged: equal to nothing that was noted
    return {"bytes": 0, "sha256": hashlib.sha256(text.encode()).hexdigest()}
