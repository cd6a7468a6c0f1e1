"""A text encoder and its tokenizer, which diffusers keeps in two folders, as one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def joined(*folders: Path) -> Iterator[Path]:
    """A folder of links to the files of several; the first folder's file of a name counts."""
    with tempfile.TemporaryDirectory() as name:
        for folder in folders:
            for file in folder.iterdir():
                link = Path(name) / file.name
                if file.is_file() and not link.exists():
                    link.symlink_to(file.absolute())
        yield Path(name)
