"""Whether what a folder's links lead to is part of that folder.

A folder from outside may hold a link of a usual name to any file of this machine. Copied, that file
would be in a run, and given away with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paella_jax.config import CheckpointError

_ours: set[Path] = set()  # folders of links to files that were looked at when the links were made


def inside(file: Path, root: Path) -> bool:
    """Whether a file, its links followed, lies in a folder.

    A snapshot of the hub's cache is `REPOSITORY/snapshots/COMMIT`, and all its files are links to
    `REPOSITORY/blobs`: these are its own. So is what lies in a folder of `made_of_links`.
    """
    target, home = _real(file), _real(root)
    if target.is_relative_to(home) or home in _ours:
        return True
    above = [place for place in (home, *home.parents) if place.parent.name == "snapshots"]
    return any(target.is_relative_to(place.parents[1] / "blobs") for place in above)


def check_inside(file: Path, root: Path) -> None:
    """Raises CheckpointError where a file lies outside of the folder, behind a link."""
    if not inside(file, root):
        raise CheckpointError(
            f"{file} is a link out of {root}; put the file that is meant in its place"
        )


def check_tree(folder: Path, root: Path) -> None:
    """Looks at all that lies below a folder as `check_inside` does; links to folders are refused.

    Raises:
      CheckpointError: a link that leads out of `root`, or to a folder, which may hold itself.
    """
    check_inside(folder, root)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            check_inside(Path(place) / name, root)
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise CheckpointError(
                    f"{Path(place) / name} is a link to a folder; put the folder itself there"
                )


def leaving_links(folder: Path) -> list[str]:
    """Links below a folder that lead out of it, by their paths in it."""
    found = [Path(place) / name for place, *names in os.walk(folder) for x in names for name in x]
    left = [file for file in found if file.is_symlink() and not inside(file, folder)]
    return sorted(file.relative_to(folder).as_posix() for file in left)


@contextmanager
def made_of_links(folder: Path) -> Iterator[None]:
    """Takes the links in a folder that this process filled as its own files."""
    home = _real(folder)
    _ours.add(home)
    try:
        yield
    finally:
        _ours.discard(home)


def _real(file: Path) -> Path:
    """The file behind all links; unlike `Path.resolve` also of a link to itself."""
    return Path(os.path.realpath(file))
