"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(file: Path, text: str) -> None:
    """Writes beside the file, then renames: a reader never sees half of it."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # other processes may do the same
    part.write_text(text)
    part.replace(file)
