"""Readers of a set's many files, of which only so many are open at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

MOST_OPEN = 2048


def most_open() -> int:
    """How many may be open: the system's limit on files leaves room for others."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else min(MOST_OPEN, soft // 4)


class OpenReaders:
    """Readers by number, opened when they are asked for, from any thread; the oldest go first."""

    def __init__(self, open_one: Callable[[int], Any]) -> None:
        self._open_one = open_one
        self._readers: dict[int, Any] = {}
        self._most = most_open()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Any:
        """The reader of a file. Raises what opening it does."""
        reader = self._readers.get(number)
        if reader is not None:
            return reader
        with self._lock:
            reader = self._readers.get(number)
            if reader is None:
                # One that is still read from elsewhere closes when that is over.
                while len(self._readers) >= self._most:
                    self._readers.pop(next(iter(self._readers)))
                reader = self._readers[number] = self._open_one(number)
        return reader
