"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paella_jax.files.tensors import ConversionError

CARD_FILE = "README.md"
PART = ".part"  # behind the name of what is half-written, its host and its process
DAY = 86_400.0
CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that sync no folders
MOST_LOOKED_THROUGH = 1024  # every save has a folder of its own
_looked_through: set[Path] = set()  # folders, for what stopped processes left there


@contextmanager
def atomic_path(target: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to, which becomes `target` at the end.

    A reader never sees half of it. An error inside leaves `target` as it was and removes the part;
    what a kill leaves is removed by the next process that writes into the folder.

    Args:
      target: what appears.
      durable: waits until it is on the disk, so that not even a loss of power leaves half of it.
    """
    _remove_left(target.parent)
    # Others may do the same, and in containers processes of several hosts have one number.
    part = target.with_name(f"{target.name}.{socket.gethostname()}.{os.getpid()}{PART}")
    remove_part(part)
    try:
        with naming(target):
            yield part
            if durable:
                sync_tree(part)
            part.replace(target)
            if durable:
                sync(target.parent)
    finally:
        remove_part(part)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """An error of writing in the block, as of a full disk, says of which file, if it did not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in CANNOT or not path.is_dir():
            raise
    finally:
        os.close(opened)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of a folder and all that is in it."""
    for below in path.rglob("*") if path.is_dir() else ():
        sync(below)
    sync(path)


def remove_part(part: Path) -> None:
    """Removes a half-written file or folder, where it is there."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _remove_left(folder: Path) -> None:
    """Removes what stopped processes left in a folder; a process looks once."""
    if folder in _looked_through:
        return
    if len(_looked_through) >= MOST_LOOKED_THROUGH:
        _looked_through.clear()
    _looked_through.add(folder)
    for part in folder.glob(f"*{PART}"):
        if _is_left(part):
            remove_part(part)


def _is_left(part: Path) -> bool:
    """Whether its process is gone; of another host's, whether nobody wrote to it for a day."""
    found = re.search(r"\.(\d+)\.part$", part.name)
    if found is None:
        return False
    if not part.name.endswith(f".{socket.gethostname()}{found[0]}"):
        try:
            return time.time() - part.stat().st_mtime > DAY
        except OSError:
            return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def write_atomically(file: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_path(file) as part:
        part.write_text(text)


def check_writable(out: Path, folder: bool, flag: str = "--out") -> None:
    """Makes sure that `out` can be written, as a file or as a folder, without leaving anything.

    Raises:
      ConversionError: naming what is in the way.
    """
    wrong = ""
    if folder and out.exists() and not out.is_dir():
        wrong = f"{out} is a file; give a folder, or a name that ends in .png or .gif"
    elif not folder and out.is_dir():
        wrong = f"{out} is a folder; give a file name"
    above = out.absolute() if out.is_dir() else out.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not wrong and not above.is_dir():
        wrong = f"cannot write {out}: {above} is a file"
    if not wrong:
        try:
            tempfile.TemporaryFile(dir=above).close()
        except OSError as error:
            wrong = f"cannot write {out}: {above}: {error.strerror}"
    if not wrong and not folder and out.exists() and not os.access(out, os.W_OK):
        wrong = f"cannot write {out}: it is write-protected"
    if wrong:
        raise ConversionError(f"{wrong}; choose another {flag}")


def check_new(out: Path) -> None:
    """Raises ConversionError where `out` holds something already, or cannot be written."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConversionError(f"{out} is not empty; choose a new --out")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f"cannot write to {out}: {error}; choose another --out") from error


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end, whole or not at all.

    Raises:
      ConversionError: `out` is not empty, or the disk is full.
    """
    check_new(out)
    try:
        with atomic_path(out.absolute()) as part:
            yield part
    except OSError as error:
        raise ConversionError(f"cannot write {out.absolute()}: {error}") from error
