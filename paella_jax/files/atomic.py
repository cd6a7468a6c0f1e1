"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paella_jax.files.tensors import ConversionError

CARD_FILE = "README.md"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to, which becomes `target` at the end.

    A reader never sees half of it. An error inside leaves `target` as it was and removes the part.
    """
    # Others may do the same, and in containers processes of several hosts have one number.
    part = target.with_name(f"{target.name}.{socket.gethostname()}.{os.getpid()}.part")
    remove = lambda: shutil.rmtree(part, True) if part.is_dir() else part.unlink(missing_ok=True)
    remove()
    try:
        yield part
        part.replace(target)
    finally:
        remove()


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
