"""What `verify` says of a run folder, and what its parts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.config import CheckpointError
from paella_jax.runs.folder import read_config

MISSING, DAMAGED, FOREIGN, NOTE = "missing", "damaged", "foreign", "note"


class Finding(NamedTuple):
    """One thing to say of a folder: its kind, of which file or array, and what is wrong."""

    kind: str
    name: str
    what: str = ""


def config_or_nothing(folder: Path) -> Any:
    """A run's config; nothing where it cannot be read, which is told already."""
    return or_nothing(read_config, folder)


def or_nothing(read: Callable[[Path], Any], folder: Path) -> Any:
    """What a file says; nothing where it cannot be read, which is told already."""
    try:
        return read(folder) or {}
    except CheckpointError:
        return {}


def entries_of(folder: Path) -> list[str]:
    """All that is no folder below a folder, by its path in it: files, pipes, links to nothing."""
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if not f.is_dir())
