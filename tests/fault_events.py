"""Processes that are forked, watched at their files, and stopped there, for tests/faults.py."""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fault_works

KILL, LATER, TERM, INT, FULL, READ_ONLY = "kill", "kill later", "SIGTERM", "SIGINT", "full", "EROFS"
BY_SIGNAL = {KILL: signal.SIGKILL, TERM: signal.SIGTERM, INT: signal.SIGINT}
PATIENCE = 60.0  # seconds that a process may say nothing
# What an event at a path is of; the first that fits.
PLACES = (
    ("lock", r"writer\.lock|/claims/"), ("digests", r"/digests\.json"),
    ("first save", r"checkpoints/2\b"), ("last save", r"checkpoints/6\b"),
    ("save", r"checkpoints/"), ("metrics", r"metrics\.jsonl"), ("preview", r"/samples\b"),
    ("shard", r"array_record"), ("record", r"/cells\b"), ("vote", r"\.sqlite"),
    ("other", r""),
)  # fmt: skip
DELETE = "delete"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


class Fault(NamedTuple):
    """What happens at an event: the `number`-th at a place."""

    kind: str
    place: str
    number: int
    wait: float = 0.0  # of a late kill


class End(NamedTuple):
    """How a start ended: exit code (minus a signal's number), output, the places of its events."""

    code: int
    output: str
    places: list[str]


class Events:
    """Counts what a process changes below a folder, and does what a fault says."""

    def __init__(self, folder: Path, fault: Fault | None, told: int) -> None:
        self.folder, self.fault, self.told = str(folder), fault, told
        self.left = fault.number if fault else 0
        self.is_read_only = False

    def start(self) -> None:
        """From now on; a process cannot take this back."""
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted(opened: Any) -> None:
            self.happens("fsync", os.readlink(f"/proc/self/fd/{_number(opened)}"))
            fsync(opened)

        os.fsync = counted

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING or isinstance(path, int):
                return
        elif event not in CHANGES:
            return
        path, folder = arguments[0], arguments[-1]
        if isinstance(path, int):
            return
        path = os.fsdecode(path)
        if not path.startswith("/"):  # of rmtree, which knows its folder by a number
            if event not in ("os.remove", "os.rmdir") or not isinstance(folder, int) or folder < 0:
                return
            path = f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
        self.happens(event, path)

    def happens(self, event: str, path: str) -> None:
        """One event."""
        if not path.startswith(self.folder):
            return
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        place = place_of(event, path)
        os.write(self.told, f"{place}\n".encode())
        if self.fault is None or place != self.fault.place:
            return
        self.left -= 1
        if self.left == 0:
            self._strike(path)

    def _strike(self, path: str) -> None:
        assert self.fault is not None
        kind = self.fault.kind
        if kind in BY_SIGNAL:
            os.kill(os.getpid(), BY_SIGNAL[kind])
        elif kind == LATER:  # its default is to end the process, wherever it is
            signal.setitimer(signal.ITIMER_REAL, self.fault.wait)
        elif kind == FULL:  # every write fails, of other languages too; names can still be made
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            self.is_read_only = True
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def _number(opened: Any) -> int:
    return opened if isinstance(opened, int) else opened.fileno()


def place_of(event: str, path: str) -> str:
    """What an event is of."""
    if event in ("os.remove", "os.rmdir") and re.search(r"checkpoints/\d+(/|$)", path):
        return DELETE
    return next(name for name, pattern in PLACES if re.search(pattern, path))


def start(run: Callable[[Path], int], folder: Path, fault: Fault | None, clock: float = 0.0) -> End:
    """Runs a work in a process of its own, until it ends or the fault ends it."""
    pid, reading = launch(run, folder, fault, clock)
    return wait_for(pid, reading)


def launch(
    run: Callable[[Path], int], folder: Path, fault: Fault | None, clock: float = 0.0
) -> tuple[int, tuple[int, int]]:
    """Forks a process that runs a work; its number, and where its output and events come from."""
    output, events = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(output[1])
        os.close(events[1])
        return pid, (output[0], events[0])
    code = 99
    try:
        os.dup2(output[1], 1)
        os.dup2(output[1], 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        if clock:
            own, own_ns = time.time, time.time_ns
            time.time = lambda: own() - clock
            time.time_ns = lambda: own_ns() - int(clock * 1e9)
        counted = Events(folder, fault, events[1])
        counted.start()
        fault_works.on_change.append(counted.happens)
        code = run(folder)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def asked(question: Callable[[Path], Any], folder: Path) -> Any:
    """What a function says of a folder; in a process of its own, as it may start threads."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(question(folder), stream)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return pickle.loads(answer)


def wait_for(pid: int, reading: tuple[int, int]) -> End:
    """Reads all that a process says, until it is gone."""
    said: dict[int, bytes] = dict.fromkeys(reading, b"")
    with selectors.DefaultSelector() as selector:
        for end in reading:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                os.kill(pid, signal.SIGQUIT)
            for key, _ in ready:
                piece = os.read(key.fd, 2**16)
                said[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    _, status = os.waitpid(pid, 0)
    output, events = (said[end].decode(errors="replace") for end in reading)
    return End(os.waitstatus_to_exitcode(status), output, events.splitlines())
