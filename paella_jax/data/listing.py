"""Which files of a folder belong to a data set, and what is left out.

Left out: hidden files and folders, what operating systems put beside images, and links to what is
there already. Links to elsewhere are followed, once. Everything left out is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from PIL import Image

# Read where PIL can: older ones lack AVIF, and some builds lack a codec.
WANTED = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
          ".avif", ".ppm", ".pgm", ".pbm", ".pnm")  # fmt: skip
# Images that nobody meant for us to leave out: told with advice.
UNREAD_IMAGES = {".heic", ".heif", ".jxl", ".avif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef",
                 ".arw", ".exr", ".tga", ".jp2", ".ico", ".eps", ".pdf"}  # fmt: skip
# Folders that systems make: thumbnails, archives' forks, bins.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
SYSTEM_FILES = {"Thumbs.db", "desktop.ini"}


@cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the images that are read."""
    return frozenset(WANTED) & frozenset(Image.registered_extensions())


def is_image(file: str | Path) -> bool:
    """Whether a file's suffix is that of an image that is read."""
    return os.path.splitext(file)[1].lower() in suffixes()


def list_files(folder: Path, left_out: Counter[str]) -> list[Path]:
    """All files below a folder that belong to it, sorted by their path's parts.

    Args:
      folder: may itself be hidden or a link.
      left_out: gets the number of what was left out, by kind.
    """
    walk = _Walk(str(folder), left_out)
    walk.through([""])
    file_links: list[str] = []
    while walk.links:
        links, walk.links = sorted(walk.links), []
        for link in links:
            if os.path.isdir(walk.path(link)):
                walk.through([link])
            else:
                file_links.append(link)
    names = [*walk.files, *_new_ones(walk.path, walk.files, file_links, left_out)]
    return [folder / name for name in sorted(names, key=lambda name: name.split("/"))]


def has_images(folder: Path) -> bool:
    """Whether `list_files` finds an image in a folder; ends at the first."""
    walk = _Walk(str(folder), Counter())
    rest = [""]
    while rest:
        rest += walk.read(rest.pop())
        if any(map(is_image, walk.files)):
            return True
        for link in walk.links:
            if os.path.isdir(walk.path(link)):
                rest.append(link)
            elif is_image(link):
                return True
        walk.files, walk.links = [], []
    return False


class _Walk:
    """Files and links found so far, as paths below the root with slashes."""

    def __init__(self, root: str, left_out: Counter[str]) -> None:
        self.root, self.left_out = root, left_out
        self.files: list[str] = []
        self.links: list[str] = []
        self.seen: set[tuple[int, int]] = set()

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def through(self, folders: list[str]) -> None:
        """Adds what lies in these folders and below, each folder of the disk once."""
        while folders:
            folders += self.read(folders.pop())

    def read(self, folder: str) -> list[str]:
        """Adds what lies in a folder, if it is new; returns the folders in it."""
        status = os.stat(self.path(folder))
        if (status.st_dev, status.st_ino) in self.seen:
            self.left_out["links to folders that are read already"] += 1
            return []
        self.seen.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(self.path(folder)) as entries:
                return self._sort_out(folder, entries)
        except PermissionError:
            self.left_out["folders that may not be read"] += 1
            return []

    def _sort_out(self, folder: str, entries: Iterable[os.DirEntry[str]]) -> list[str]:
        """Keeps a folder's files and links; returns its own folders."""
        inner = []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            kind = why_left_out(entry.name)
            if kind:
                self.left_out[kind] += 1
            elif entry.is_symlink():
                self.links.append(name)
            elif entry.is_dir():
                inner.append(name)
            else:
                self.files.append(name)
        return inner


def why_left_out(name: str) -> str:
    """Why a name is left out; empty where it is not."""
    if name.startswith("._"):
        return "macOS forks (._*)"
    if name.startswith("."):
        return "hidden"
    return "of the system" if name in SYSTEM_FOLDERS or name in SYSTEM_FILES else ""


def _new_ones(
    path: Callable[[str], str], files: list[str], links: list[str], left_out: Counter[str]
) -> list[str]:
    """Links to files, but for those to images that are in the folder too.

    A dangling link stays: its image is then reported as missing.
    """
    if not links:
        return []
    target = lambda name: os.path.realpath(path(name))
    there = {target(name) for name in files if is_image(name)}
    kept = []
    for link in links:
        if is_image(link):
            if target(link) in there:
                left_out["links to images that are there already"] += 1
                continue
            there.add(target(link))
        kept.append(link)
    return kept


def count_others(
    files: Iterable[Path], used: Callable[[Path], bool], left_out: Counter[str]
) -> None:
    """Counts the files that are neither images nor `used`, by suffix."""
    for file in files:
        suffix = file.suffix.lower()
        if is_image(file) or used(file):
            continue
        if suffix in UNREAD_IMAGES:
            left_out[f"{suffix} (not read; convert to PNG or JPEG)"] += 1
        else:
            left_out[suffix or "without suffix"] += 1
