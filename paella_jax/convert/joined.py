"""A text encoder and its tokenizer, which diffusers keeps in two folders, as one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paella_jax.runs.inside import check_inside, made_of_links


@contextmanager
def joined(*folders: Path) -> Iterator[Path]:
    """A folder of links to the files of several; the first folder's file of a name counts.

    Raises:
      CheckpointError: one of the files is itself a link to what is no part of its folder.
    """
    with tempfile.TemporaryDirectory() as name:
        for folder in folders:
            for file in folder.iterdir():
                link = Path(name) / file.name
                if file.is_file() and not link.exists():
                    check_inside(file, folder)
                    link.symlink_to(file.absolute())
        with made_of_links(Path(name)):
            yield Path(name)
