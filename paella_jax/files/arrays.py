"""Arrays that numpy saved, .npy and .npz: nothing in them is run, and no more memory is asked for
than their bytes fill.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

LONGEST_HEADER = 10_000
INFLATED = 1100  # bytes that one byte of a compressed entry may become: deflate makes 1032
KINDS = "biufcSU"  # of types that are numbers or texts
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(file: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
      ValueError: it is none, is cut off, or holds objects.
      OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        return _read(opened, file.stat().st_size)


def read_npz(file: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by their names; default all.

    Args:
      file: its path.
      names: those to read; what is not there is left out.

    Raises:
      ValueError: it is none, is damaged, or holds objects.
      OSError: it cannot be read.
    """
    size, found = file.stat().st_size, {}
    try:
        with zipfile.ZipFile(file) as archive:
            infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name in infos if names is None else names:
                if name in infos:
                    found[name] = _entry(archive, infos[name], size)
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile and zlib raise nearly anything at damaged archives
        raise ValueError(f"its archive is damaged ({error or type(error).__name__})") from error
    return found


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> np.ndarray:
    packed = min(info.compress_size, size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in a way that numpy does not use")
    if info.file_size > INFLATED * packed + LONGEST_HEADER:
        raise ValueError(f"{info.filename} would become {info.file_size} bytes of {packed}")
    with archive.open(info) as opened:
        return _read(opened, info.file_size)


def _read(opened: IO[bytes], size: int) -> np.ndarray:
    """The array in the `size` bytes of a stream."""
    try:
        version = np.lib.format.read_magic(opened)
        shape, by_columns, dtype = READERS[version](opened, max_header_size=LONGEST_HEADER)
    except Exception as error:  # what a damaged header makes numpy's parser raise
        raise ValueError(f"it has no header of numpy.save ({error or 'damaged'})") from error
    is_plain = dtype.kind in KINDS and dtype.names is None and dtype.subdtype is None
    if not is_plain or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("it holds no plain numbers")
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise ValueError(f"it has {size} bytes, its header promises {count * dtype.itemsize}")
    raw = opened.read(count * dtype.itemsize)
    if len(raw) < count * dtype.itemsize:
        raise ValueError("it is cut off")
    array = np.frombuffer(bytearray(raw), dtype, count) if count else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if by_columns else "C")
