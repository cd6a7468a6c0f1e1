"""`digests.json` of a run folder: the digest of every file in it that is written once and whole.

Of safetensors files that carry the digests of their arrays it has that of the header, so that a
file in the place of another one is noticed and nothing is read twice. Files that grow line by line
have a check in every line, checkpoints a list of their own (runs/step_digests.py). Shared folders
have a manifest instead.

A file is marked before it is written and noted behind it: what a kill leaves in between is taken as
it is found by the next training call. One process writes the list, the one that has the lock.

The list also has the run's own name, drawn when it is begun; each checkpoint's note repeats it.
"""

from __future__ import annotations

import fnmatch
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paella_jax import __version__
from paella_jax.config import CheckpointError
from paella_jax.files.atomic import PART, remove_part, sync, write_atomically
from paella_jax.files.digests import (
    WRITING,
    check_list,
    digest,
    digest_of_parts,
    from_sealed_json,
    in_threads,
    problem,
    to_sealed_json,
)
from paella_jax.files.regular import read_regular
from paella_jax.files.safetensors_file import DIGESTS as ARRAY_DIGESTS
from paella_jax.files.safetensors_file import read_notes
from paella_jax.outside import escaped
from paella_jax.runs.checked_lines import check_older_lines
from paella_jax.runs.manifest import MANIFEST, check_files, read_manifest
from paella_jax.runs.step_digests import run_of_steps, steps_have_digests

DIGESTS_FILE = "digests.json"
CONFIG_FILE = "config.json"
FORMAT = 1
# Entries of a run folder that have checks of their own, or are no part of the run.
LINES = ("metrics.jsonl", "history.jsonl")
APART = (DIGESTS_FILE, MANIFEST, *LINES, "writer.lock*", "checkpoints/*",
         "incomplete/*", "tensorboard/*", "wandb/*", "wandb_id",
         "*.part", "*.part/*")  # fmt: skip
# What is noted once it is there; of other files nothing is known.
OWN = (CONFIG_FILE, "data.json", "timing.json", "trained.json", "weights.safetensors",
       "frozen/*", "samples/*.png")  # fmt: skip
FROZEN = "frozen/*"  # marked as a whole: what is carried is not known by name before
ACCEPT = "python -m paella_jax.verify"

_told: set[str] = set()  # what was told once


def tell_once(line: str) -> None:
    """One line on standard error, the first time it is told in this process."""
    if line not in _told:
        _told.add(line)
        print(escaped(line), file=sys.stderr, flush=True)


def read_digests(folder: str | Path) -> dict[str, Any] | None:
    """What is noted of a folder: "version", and "files" by name; None where nothing is.

    Raises:
      CheckpointError: the list is damaged, or of a newer form.
    """
    file = Path(folder) / DIGESTS_FILE
    try:
        content = from_sealed_json(read_regular(file))
        if not isinstance(content.get("version"), str) or "files" not in content:
            raise ValueError("it says nothing of files")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); {how_to_go_on(Path(folder))}"
        ) from error
    check_list(content, file, FORMAT, content["files"])
    return content


def files_to_note(folder: Path) -> list[str]:
    """Files of a folder, by their paths in it, that belong to a run and are written whole."""
    names = (f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    return sorted(name for name in names if matches(name, OWN) and not matches(name, APART))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path fits one of some patterns, whose `*` takes in slashes."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def note_files(folder: str | Path, names: Iterable[str] | None = None) -> None:
    """Notes the digests of files as they are now; default all that are not noted yet."""
    folder = Path(folder)
    known = _files(folder)
    if names is None:
        pending = [name for name, was in known.items() if was == WRITING]
        there = [name for name in pending if (folder / name).is_file()]
        new = [name for name in files_to_note(folder) if name not in known]
        names, known = [*there, *new], {n: was for n, was in known.items() if n not in pending}
        if not names and not pending:
            return
    _write(folder, known | _described(folder, names))


def renew_list(folder: str | Path) -> None:
    """Writes the list of a folder anew where it is lost or damaged: files are taken as they are."""
    folder = Path(folder)
    files = _described(folder, files_to_note(folder))
    (folder / DIGESTS_FILE).unlink(missing_ok=True)
    _write(folder, files)


def mark_frozen(folder: str | Path) -> None:
    """Marks `frozen/` as being written, until `note_files` notes all that is in it then."""
    _write(Path(folder), _files(Path(folder)) | {FROZEN: WRITING})


@contextmanager
def noting(folder: str | Path, name: str) -> Iterator[Path]:
    """The path of a file that the block writes, whole or not at all, and that is noted then.

    A block may also find that there is nothing to write.
    """
    folder = Path(folder)
    _write(folder, _files(folder) | {name: WRITING})
    yield folder / name
    if (folder / name).is_file():
        sync(folder / name)
        note_files(folder, [name])
    else:
        forget_files(folder, name)


def is_noted(folder: str | Path, name: str) -> bool:
    """Whether a file of this name was written, or begun."""
    return name in _files(Path(folder))


def write_noted(folder: str | Path, name: str, text: str) -> None:
    """Writes a text file of a run folder, and its digest."""
    with noting(folder, name) as file:
        write_atomically(file, text)


def remove_parts(folder: Path) -> None:
    """Removes what processes left half-written in a run folder that were killed, on any host."""
    names = [f"{name}.*{PART}" for name in (*OWN, *LINES, "frozen", DIGESTS_FILE)]
    for part in (*folder.glob(f"*{PART}"), *folder.glob(f"[fs]*/**/*{PART}")):
        if matches(part.relative_to(folder).as_posix(), names):
            remove_part(part)


def forget_files(folder: str | Path, pattern: str) -> None:
    """Drops what is noted of files that were removed on purpose."""
    known = _files(Path(folder))
    kept = {name: was for name, was in known.items() if not matches(name, [pattern])}
    if kept != known:
        _write(Path(folder), kept)


def how_to_go_on(folder: Path) -> str:
    """What to do about a list that is lost or damaged."""
    if (folder / MANIFEST).is_file():
        return f"delete it: a shared folder is held against its {MANIFEST}"
    command = f"{ACCEPT} {folder} --accept {DIGESTS_FILE}"
    return f"restore it from a copy, or take all files as they are now by {command}"


def is_list_lost(folder: Path) -> bool:
    """Whether a folder has no list though one was begun before its checkpoints were written."""
    is_run = not ((folder / DIGESTS_FILE).exists() or (folder / MANIFEST).is_file())
    return is_run and steps_have_digests(folder)


def run_of(folder: str | Path) -> str:
    """The name that tells a folder's run from others of its config; empty where it has none."""
    return str((read_digests(folder) or {}).get("run", ""))


def is_of_another_run(note: dict[str, Any], folder: Path) -> bool:
    """Whether a checkpoint's note names another run than its folder; older ones name none."""
    named, run = note.get("run"), run_of(folder)
    return bool(named and run and named != run)


def version_of(folder: str | Path) -> str:
    """The version that wrote a folder's config; empty where that is not noted."""
    manifest, content = read_manifest(folder), read_digests(folder)
    if manifest is not None or content is None:
        return str((manifest or {}).get("version", ""))
    return str(content["version"]) if CONFIG_FILE in content["files"] else ""


def check_noted(folder: str | Path, wanted: Callable[[str], bool]) -> None:
    """Compares files with the manifest of a shared folder, and with what is noted of them.

    Args:
      folder: run folder; one of an older version, of which nothing is noted, passes.
      wanted: which names to look at.

    Raises:
      CheckpointError: files are missing or not what was written, and all are named; or the list
        is lost that says what was written.
    """
    folder = Path(folder)
    check_files(folder, wanted)  # of a shared folder, whatever a list beside its manifest says
    content = _read_or_refuse(folder)
    if content is None:
        return
    wrong = differing_files(folder, content, wanted)
    if wrong:
        told = "; ".join(f"{name} {what}" for name, what in wrong.items())
        raise CheckpointError(
            f"{folder} is damaged: {told}. Copy it again; a file that you changed yourself is "
            f"accepted by {ACCEPT} {folder} --accept {next(iter(wrong))}"
        )


def differing_files(
    folder: Path, content: dict[str, Any], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, str]:
    """{name: what is wrong} of the noted files."""
    known = {n: was for n, was in content["files"].items() if was != WRITING and wanted(n)}
    found = in_threads(lambda item: _problem(folder / item[0], item[1]), known.items())
    return {name: what for name, what in zip(known, found, strict=True) if what}


def _problem(file: Path, known: dict[str, Any]) -> str:
    return problem(file, known, _header_digest if known.get("header") else digest)


def _describe(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if file.suffix == ".safetensors" and ARRAY_DIGESTS in _notes(file):
        return {"bytes": size, "sha256": _header_digest(file), "header": True}
    return {"bytes": size, "sha256": digest(file)}


def _notes(file: Path) -> dict[str, str]:
    try:
        return read_notes(file)
    except (ValueError, AttributeError, OverflowError):  # it is no such file
        return {}


def _header_digest(file: Path) -> str:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    return digest_of_parts(file.parent, [(file.name, 0, 8 + length)])


def _files(folder: Path) -> dict[str, Any]:
    content = _read_or_refuse(folder)
    return {} if content is None else content["files"]


def _read_or_refuse(folder: Path) -> dict[str, Any] | None:
    """`read_digests`; CheckpointError too where a folder lost the list that it once had."""
    content = read_digests(folder)
    if content is None and is_list_lost(folder):
        lost = f"{folder} lost its {DIGESTS_FILE}, by which its files are checked"
        raise CheckpointError(f"{lost}; {how_to_go_on(folder)}")
    return content


def _described(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    found = in_threads(lambda name: _describe(folder / name), names)
    return dict(zip(names, found, strict=True))


def _write(folder: Path, files: dict[str, Any]) -> None:
    if not (folder / DIGESTS_FILE).is_file():  # begun in an older folder, perhaps
        for name in LINES:
            check_older_lines(folder / name)
        files = dict.fromkeys(files_to_note(folder), WRITING) | files
    run = run_of(folder) or run_of_steps(folder) or secrets.token_hex(8)
    content = {"format": FORMAT, "version": __version__, "run": run}
    content["files"] = dict(sorted(files.items()))
    write_atomically(folder / DIGESTS_FILE, to_sealed_json(content))
