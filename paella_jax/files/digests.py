"""SHA-256 digests of files and of parts of files, and JSON that carries its own.

SHA-256 is what the hub and `sha256sum` show, and processors have instructions for it. hashlib lets
go of Python's lock, so that threads share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from paella_jax.config import CheckpointError
from paella_jax.outside import parse_object

CHUNK = 8 * 2**20  # bytes read at once
THREADS = min(8, os.cpu_count() or 1)
LONGEST_NAME = 255  # bytes of a file's name
WRITING = {"writing": True}  # an entry of a file that is about to be there
DIGESTS = ("sha256", "rest")  # of a file, or of what no array has of it
OWN = "sha256"  # the digest's name in a JSON file that has one
Version = tuple[str, int, int, int, int]
MOST_KNOWN = 4096
_known: dict[Version, str] = {}  # of files, until they change

Item = TypeVar("Item")
Result = TypeVar("Result")


def version(file: Path) -> Version:
    """What differs once a file is another one or was written to, for as long as a process runs."""
    real = file.resolve()
    status = real.stat()
    return (
        str(real), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip


def digest(file: Path) -> str:
    """SHA-256 of a file as hex digits; of one that did not change since, without reading it."""
    key = version(file)
    known = _known.get(key)
    if known is not None:
        return known
    real = Path(key[0])
    found = digest_of_parts(real.parent, [(real.name, 0, key[2])])
    if len(_known) >= MOST_KNOWN:  # of a run that saves for weeks
        _known.clear()
    _known[key] = found
    return found


def digest_of_parts(folder: Path, parts: Iterable[tuple[str, int, int]]) -> str:
    """SHA-256 of some bytes of some files, one after another.

    Args:
      folder: what the names are below.
      parts: (file, first byte, number of bytes); a file that is too short gives what it has.
    """
    sha = hashlib.sha256()
    for name, start, length in parts:
        with (folder / name).open("rb") as stream:
            stream.seek(start)
            while length > 0 and (piece := stream.read(min(CHUNK, length))):
                sha.update(piece)
                length -= len(piece)
    return sha.hexdigest()


def describe(file: Path) -> dict[str, Any]:
    """The bytes and the SHA-256 digest of a file."""
    return {"bytes": file.stat().st_size, "sha256": digest(file)}


def problem(file: Path, known: dict[str, Any], now: Callable[[Path], str] = digest) -> str:
    """What is wrong with a file that `describe` knew; empty if nothing."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != known["bytes"]:
        cut = "is cut short: it" if size < known["bytes"] else "is too long: it"
        return f"{cut} has {size} bytes of {known['bytes']}"
    return "" if now(file) == known["sha256"] else "has another SHA-256 digest"


def is_inside(name: object) -> bool:
    """Whether a path names something in the folder that it is relative to."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    parts = path.parts
    try:
        short = all(len(os.fsencode(part)) <= LONGEST_NAME for part in parts)
    except UnicodeEncodeError:  # half a surrogate pair, which no file system takes
        return False
    return short and bool(parts) and not path.is_absolute() and ".." not in parts


def check_list(content: dict[str, Any], file: Path, form: int, names: Iterable[str]) -> None:
    """Checks what a list of digests says of itself, so that nothing else is read for it.

    Args:
      content: of the list.
      file: where it was read.
      form: that this version reads.
      names: of all files that it lists.

    Raises:
      CheckpointError: the list is of another form, or lists files outside of its folder.
    """
    if content.get("format") != form:
        raise CheckpointError(
            f"{file} has format {content.get('format')!r}, this version reads {form}; update "
            "paella_jax"
        )
    files = content.get("files", {})
    if not isinstance(files, dict) or not all(map(_is_listed, files.values())):
        raise CheckpointError(f"{file} is damaged (it lists a file without its size and digest)")
    outside = [name for name in names if not is_inside(name)]
    if outside:
        raise CheckpointError(f"{file} is damaged (it lists {outside[0]!r}, no file of its folder)")


def _is_listed(known: Any) -> bool:
    """Whether an entry has the size and the digest of a file, or says that it is being written."""
    if not isinstance(known, dict):
        return False
    size, digests = known.get("bytes"), [known[name] for name in DIGESTS if name in known]
    is_whole = type(size) is int and size >= 0 and bool(digests)
    return known == WRITING or (is_whole and all(isinstance(one, str) for one in digests))


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in the order of the items; few items are done at once, without threads."""
    items = list(items)
    if len(items) < 2 or THREADS < 2:
        return [work(item) for item in items]
    return list(_pool().map(work, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "digests")


def to_sealed_json(content: dict[str, Any]) -> str:
    """JSON with a digest of itself, so that a damaged list of digests accuses no sound file."""
    return json.dumps({**content, OWN: _own_digest(content)}, indent=1)


def from_sealed_json(text: str | bytes) -> dict[str, Any]:
    """The inverse.

    Raises:
      ValueError: no JSON object, or not the one that was written.
    """
    content = parse_object(text)
    if content.pop(OWN, None) != _own_digest(content):
        raise ValueError("it is not what was written")
    return content


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
