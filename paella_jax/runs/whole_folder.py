"""A new folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paella_jax.files.tensors import ConversionError

CARD_FILE = "README.md"


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
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.replace(out)
    except OSError as error:
        raise ConversionError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
