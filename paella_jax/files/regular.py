"""Reading of small files whose names are known and whose kind is not: no pipe, no device.

A folder from outside may have a pipe under a usual name, which a reader waits for without end, or a
link to a device that gives bytes without end.
"""

from __future__ import annotations

import stat
from pathlib import Path

MOST = 2**28  # bytes; the list of a checkpoint of 4000 arrays in 256 parts each has a tenth


def read_regular(file: Path, most: int = MOST) -> bytes:
    """The bytes of a regular file, links followed.

    Args:
      file: what is read whole.
      most: bytes that it may have.

    Raises:
      ValueError: it is a folder, a pipe or a device, or has more bytes.
      OSError: it cannot be read; FileNotFoundError where nothing is there.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > most:
        raise ValueError(f"it has {status.st_size} bytes, and at most {most} are read of it")
    with file.open("rb") as stream:
        return stream.read(most)
