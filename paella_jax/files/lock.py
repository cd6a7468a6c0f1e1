"""One writer at a time: a lock file that says who holds it and since when.

It appears whole or not at all, by a hard link (where a file system has none, by exclusive
creation), which is atomic on network file systems too; `flock` is not on all of them. The holder
touches it every few seconds. A lock counts as left behind once its process is gone, where that can
be seen from here (the same boot and the same process namespace), else once it was not touched for
`STALE` seconds. The clock is that of the file system, or our own where that one was set back: a
lock that says a time to come is watched for as long. A process that was stopped for so long that
another one took its lock ends itself when it notices, before it writes more.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError, UserError
from paella_jax.files.regular import read_regular
from paella_jax.outside import parse_json, say

WRITER = "writer.lock"  # of a run folder
BEAT = 10.0  # seconds between touches
STALE = 120.0  # seconds without one, after which a lock is left behind
ENDING = 4  # Linux' mark of a process that is about to be gone
LOST = 2  # exit code of a process whose lock was taken
TAKING = ".taking"  # behind the lock's name, while one that was left behind is replaced
_seen: dict[Path, tuple[float, float]] = {}  # locks -> when touched, and since when that is so here


class LockedError(UserError, RuntimeError):
    """Another process writes there; the message names it and since when."""


class Lock:
    """A lock file; `acquire` or `try_acquire`, then `release`."""

    def __init__(self, file: Path, work: str) -> None:
        """Nothing is written yet.

        Args:
          file: the lock's path; its folder is made when it is acquired.
          work: what the holder does, for others to read.
        """
        self.file, self.work = file, work
        inside = file.name == WRITER
        self.guarded = file.parent if inside else file.with_name(file.name.removesuffix(".lock"))
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._made = False  # the folder

    def acquire(self) -> None:
        """Takes the lock, or one that was left behind.

        One of another host that is silent is watched until it is touched or counts as left behind.

        Raises:
          LockedError: another process has it.
          ConfigError: its folder cannot be written.
        """
        try:
            self._acquire()
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.file.parent}: {error}; choose a folder you may write to"
            ) from error

    def _acquire(self) -> None:
        deadline, first = time.monotonic() + STALE + 2 * BEAT, _touched(self.file)
        while not self.try_acquire():
            there = _read(self.file)
            if there is None:
                continue  # it was released just now
            is_alive = _is_alive(there) or _touched(self.file) != first
            if is_alive or time.monotonic() > deadline:
                raise LockedError(
                    f"{self.guarded} is written by {holder(there)}. Wait for it or end it; if it "
                    f"runs no more, delete {self.file}"
                )
            time.sleep(BEAT / 10)

    def try_acquire(self) -> bool:
        """As `acquire`, at once; returns whether this process has the lock now."""
        self._made = self._made or not self.file.parent.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self._create(self.file):
            there = _read(self.file)
            if there is None or not _is_left(there, self.file) or not self._take(there):
                return False
        self._remove_left()
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def release(self) -> None:
        """Gives the lock back, and takes away the folder if that was made for it and is empty."""
        self._ended.set()
        there = _read(self.file)
        if there is not None and there.get("token") == self._token:
            with suppress(OSError):  # on a disk that takes nothing: it is left once we are gone
                self.file.unlink(missing_ok=True)
            if self._made:
                with suppress(OSError):  # something is in it
                    self.file.parent.rmdir()

    def _take(self, left: dict[str, Any]) -> bool:
        """Replaces a lock that was left behind. Of several that try, one does."""
        guard = self.file.with_name(self.file.name + TAKING)
        if not self._create(guard):
            other = _read(guard)
            if other is not None and _is_left(other, guard):  # it was killed in between
                guard.unlink(missing_ok=True)
            return False
        try:
            if _read(self.file) != left:
                return False
            part = self._part()
            part.replace(self.file)
        finally:
            guard.unlink(missing_ok=True)
        return True

    def _create(self, file: Path) -> bool:
        """Whether the file was not there and is ours now."""
        part = self._part()
        try:
            os.link(part, file)
            return True
        except FileExistsError:
            # A network file system may have linked it, and lost the answer.
            return _links(part) == 2
        except OSError:
            return self._create_exclusively(file)
        finally:
            part.unlink(missing_ok=True)

    def _create_exclusively(self, file: Path) -> bool:
        try:
            with file.open("x") as stream:
                stream.write(self._content())
        except FileExistsError:
            return False
        return True

    def _remove_left(self) -> None:
        """Removes what others left that were killed while they tried."""
        guard = self.file.with_name(self.file.name + TAKING)
        there = _read(guard)
        with suppress(OSError):
            if there is not None and _is_left(there, guard):
                guard.unlink(missing_ok=True)
            for part in self.file.parent.glob(f"{self.file.name}.*.part"):
                part.unlink(missing_ok=True)

    def _part(self) -> Path:
        part = self.file.with_name(f"{self.file.name}.{self._token}.part")
        part.write_text(self._content())
        return part

    def _content(self) -> str:
        who = {"work": self.work, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({**who, **_here(), "since": _now(), "token": self._token})

    def _beat(self) -> None:
        """Touches the file until it is released; ends the process where another one has it."""
        while not self._ended.wait(BEAT):
            there = _read(self.file)
            try:
                if there is None:  # somebody deleted it
                    self._create(self.file)
                elif there.get("token") == self._token:
                    os.utime(self.file)
            except OSError:
                continue  # told where the run itself cannot write
            if there and there.get("token") != self._token and not self._ended.is_set():
                say(
                    f"error: {self.guarded} is written by {holder(there)}, which took over "
                    "from this process while it was silent; it stops without saving",
                    sys.stderr,
                )
                os._exit(LOST)


@contextmanager
def locked(file: Path, work: str) -> Iterator[None]:
    """Holds a lock for the block. Raises LockedError where another process has it."""
    lock = Lock(file, work)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def clear_left(file: Path) -> None:
    """Removes a lock whose holder is gone, where nobody will ask for it any more."""
    lock = Lock(file, "tidying up")
    if file.exists() and lock.try_acquire():
        lock.release()


def beside(out: str | Path) -> Path:
    """The lock of a file or folder that appears whole, and so cannot have one inside."""
    out = Path(out).absolute()
    return out.with_name(f"{out.name}.lock")


def read_lock(file: Path) -> dict[str, Any] | None:
    """What a lock says, for `holder`; None where nobody has it."""
    there = _read(file)
    return None if there is None or _is_left(there, file) else there


def holder(there: dict[str, Any]) -> str:
    """Who has a lock, in words."""
    work, host, pid = (there.get(name, "unknown") for name in ("work", "host", "pid"))
    return f"{work} (process {pid} on {host}, since {there.get('since', 'an unknown time')})"


def _is_left(there: dict[str, Any], file: Path) -> bool:
    """Whether the holder is gone."""
    if _is_near(there):
        return _started(there["pid"]) != there.get("started")
    return _silence(file) > STALE


def _is_alive(there: dict[str, Any]) -> bool:
    """Whether the holder is seen to run."""
    return _is_near(there) and _started(there["pid"]) == there.get("started")


def _is_near(there: dict[str, Any]) -> bool:
    """Whether the holder's process can be seen from here."""
    near = {name: value for name, value in _here().items() if name != "started"}
    is_known = all(near.values()) and isinstance(there.get("pid"), int)
    return is_known and all(there.get(name) == value for name, value in near.items())


def _here() -> dict[str, str]:
    """This boot of this machine, its process namespace and when this process started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        boot = space = ""
    return {"boot": boot, "namespace": space, "started": _started(os.getpid())}


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty of one that is gone or ends."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after[0] in "ZX" or int(after[6]) & ENDING else after[19]


def _read(file: Path) -> dict[str, Any] | None:
    """What a lock says; None where there is none, {} where it cannot be read (yet)."""
    try:
        content = parse_json(read_regular(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _touched(file: Path) -> float:
    """When a lock was last touched; opening it makes network file systems ask the server."""
    try:
        opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's other end is not waited for
    except OSError:
        return 0.0
    try:
        return os.fstat(opened).st_mtime
    finally:
        os.close(opened)


def _silence(file: Path) -> float:
    """Seconds since a lock was last touched, by its file system's clock or as seen from here."""
    touched, now = _touched(file), time.monotonic()
    if _seen.get(file, (None,))[0] != touched:
        _seen[file] = touched, now
    return max(_age(file), now - _seen[file][1])


def _links(file: Path) -> int:
    """How many names a file has; none where another process removed it."""
    try:
        return file.stat().st_nlink
    except FileNotFoundError:
        return 0


def _age(file: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system.

    By our own where nothing can be written there: who looks at a run may not be its owner.
    """
    probe, now = file.with_name(f"{file.name}.{secrets.token_hex(8)}.part"), time.time()
    with suppress(OSError):
        with probe.open("xb") as stream:  # which the holder may remove meanwhile
            now = os.fstat(stream.fileno()).st_mtime
        probe.unlink(missing_ok=True)
    return now - _touched(file)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
