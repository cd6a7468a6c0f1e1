"""Dividing work between processes that were started on the same folder.

A process claims a task by creating `<name>.claim` with its host and number, and removes it when the
task is done. A claim of a process of this host that is gone counts as none.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from paella_jax.training.metrics import report

WAIT = 5.0  # seconds between looks at what others do


class Task(NamedTuple):
    """One piece of work.

    Attributes:
      name: of its claim.
      done: whether its result is there, whoever made it.
      work: makes the result.
    """

    name: str
    done: Callable[[], bool]
    work: Callable[[], object]


def do_together(tasks: Sequence[Task], folder: Path, wait: float = WAIT) -> None:
    """Returns when all tasks are done, by this process or by others on the same folder.

    Args:
      tasks: in the order they are tried.
      folder: of the claims.
      wait: seconds between looks while others are at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    while todo := [task for task in tasks if not task.done()]:
        busy = True
        for task in todo:
            with claim(folder / f"{task.name}.claim") as mine:
                if mine and not task.done():
                    busy = False
                    task.work()
        if busy:
            if not told:
                report(f"waiting for other processes: {', '.join(task.name for task in todo)}")
                told = True
            time.sleep(wait)


@contextmanager
def claim(file: Path) -> Iterator[bool]:
    """Whether this process may do what the file stands for; until the end of the block."""
    mine = _create(file) or (_is_stale(file) and _take_over(file))
    try:
        yield mine
    finally:
        if mine:
            file.unlink(missing_ok=True)


def _create(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        stream.write(f"{socket.gethostname()} {os.getpid()}")
    return True


def _is_stale(file: Path) -> bool:
    """Whether the claim's process, on this host, does not run any more."""
    try:
        host, _, number = file.read_text().partition(" ")
    except FileNotFoundError:
        return False
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _take_over(file: Path) -> bool:
    file.unlink(missing_ok=True)
    return _create(file)
