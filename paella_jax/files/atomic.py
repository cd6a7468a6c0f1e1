"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to, which becomes `target` at the end.

    A reader never sees half of it. An error inside leaves `target` as it was and removes the part.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}.part")  # others may do the same
    _remove(part)
    try:
        yield part
        part.replace(target)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomically(file: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_path(file) as part:
        part.write_text(text)
