"""Parts of many files, read by their offsets from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_OPEN = 256  # files that stay open; others are opened for each read


class FileRanges:
    """Reads bytes of numbered files; it can be pickled, and opens files when they are needed."""

    def __init__(self, files: Sequence[Path]) -> None:
        """The files, by number."""
        self.files = list(files)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a file. Raises OSError where it cannot be read or is shorter."""
        handle = self._handle(number)
        if handle is None:
            with self.files[number].open("rb", buffering=0) as opened:
                found = os.pread(opened.fileno(), size, offset)
        else:
            found = os.pread(handle, size, offset)
        if len(found) < size:
            raise OSError(f"{self.files[number]} ends before byte {offset + size}")
        return found

    def _handle(self, number: int) -> int | None:
        """An open file that nobody closes while it is read; None where enough are open."""
        handle = self._open.get(number)
        if handle is None:
            with self._lock:
                handle = self._open.get(number)
                if handle is None and len(self._open) < MOST_OPEN:
                    handle = os.open(self.files[number], os.O_RDONLY)
                    self._open[number] = handle
        return handle

    def close(self) -> None:
        """Closes what is open; reading opens it again."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"])  # type: ignore[misc]
