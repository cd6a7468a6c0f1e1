"""Dividing work between processes that were started on the same folder.

A process claims a task by the lock `claims/<name>` (files/lock.py). When a process ends, however it
ends, another one takes its task over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from paella_jax.files.lock import Lock, clear_left, holder, read_lock
from paella_jax.training.metrics import report

CLAIMS = "claims"
WAIT = 5.0  # seconds between looks at what others do


class Task(NamedTuple):
    """One piece of work.

    Attributes:
      name: the claim's file name.
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
      folder: the comparison's; its claims are in a folder below.
      wait: seconds between looks while others are at work.
    """
    claims = folder / CLAIMS
    claims.mkdir(parents=True, exist_ok=True)
    waiting = False
    while todo := [task for task in tasks if not task.done()]:
        busy = True
        for task in todo:
            with claim(claims / task.name) as mine:
                if mine and not task.done():
                    busy = False
                    task.work()
        if busy:
            if not waiting:
                names = ", ".join(_claimed(claims / task.name) for task in todo)
                report(f"waiting for other processes: {names}")
                waiting = True
            time.sleep(wait)
    for task in tasks:  # what was finished by a process that was killed before it said so
        clear_left(claims / task.name)


@contextmanager
def claim(file: Path) -> Iterator[bool]:
    """Gives whether this process may do what the file stands for, until the end of the block."""
    lock = Lock(file, "a process")
    if not lock.try_acquire():
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _claimed(file: Path) -> str:
    """A task and who does it."""
    there = read_lock(file)
    return file.name if there is None else f"{file.name} ({holder(there)})"
