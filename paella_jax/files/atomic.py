"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Writes beside the file, then renames: a reader never sees half of it."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # other processes may do the same
    part.write_text(text)
    part.replace(file)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which takes its place at the end."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    yield part
    part.replace(path)
