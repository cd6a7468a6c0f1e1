"""Stops works at every place where they touch files, and starts them again until they are done.

`python tests/faults.py [COUNT] [SEED]` stops trainings, encodings, comparisons and votes COUNT
times (default 100) at places that are drawn by SEED: by SIGKILL at a file-system event or some
milliseconds behind it, by SIGTERM and SIGINT, by a disk that is full or read-only from then on.
Every second time the clock is set back. In the end each folder must be what one call that nobody
stopped leaves, bit for bit. Prints what it did and every deviation; exit code 1 if there is one.

The works run in processes that are forked from this one, which has imported all and started
nothing, so that a start takes a second.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KILL, LATER, TERM, INT, FULL, READ_ONLY = "kill", "kill later", "SIGTERM", "SIGINT", "full", "EROFS"
BY_SIGNAL = {KILL: signal.SIGKILL, TERM: signal.SIGTERM, INT: signal.SIGINT}
PATIENCE = 60.0  # seconds that a process may say nothing
LONGEST = 0.03  # seconds that a late kill waits
DAY = 86_400.0
CHAIN = 5  # stops of one folder, at most
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
            path, mode, flags = arguments
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
        if clock:
            own, own_ns = time.time, time.time_ns
            time.time = lambda: own() - clock
            time.time_ns = lambda: own_ns() - int(clock * 1e9)
        import fault_works

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
    import selectors

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


def draw(chance: np.random.Generator, places: Sequence[str], kinds: Sequence[str]) -> Fault:
    """A fault at one of the places of an uninterrupted call; each place is as likely as another."""
    counts = Counter(places)
    place = str(chance.choice(sorted(counts)))
    number = int(chance.integers(1, counts[place] + 1))
    return Fault(str(chance.choice(kinds)), place, number, float(chance.uniform(1e-4, LONGEST)))


def problem_of(fault: Fault, end: End) -> str:
    """What is wrong with how a start ended that met a fault; empty if nothing."""
    errors = [line for line in end.output.splitlines() if line.startswith("error: ")]
    if "Traceback" in end.output:
        return "a traceback"
    allowed = {
        KILL: (-signal.SIGKILL,), LATER: (-signal.SIGALRM,), TERM: (-signal.SIGTERM, 143),
        INT: (130,), FULL: (1, 2), READ_ONLY: (1, 2),
    }[fault.kind]  # fmt: skip
    if end.code not in (0, *allowed):
        return f"exit code {end.code}"
    if fault.kind in (FULL, READ_ONLY) and end.code and len(errors) != 1:
        return f"{len(errors)} lines of error"
    return ""


def age(folder: Path, seconds: float) -> None:
    """Makes all files of a folder as old as that; less than nothing is in the future."""
    then = time.time() - seconds
    for file in folder.rglob("*"):
        os.utime(file, (then, then))


class Chain(NamedTuple):
    """What came of stopping one folder several times.

    Attributes:
      stops: faults that a start met, by their kinds.
      places: the same by their places.
      lost: finished saves that were gone after a stop.
      wrong: every deviation, in words.
    """

    stops: Counter[str]
    places: Counter[str]
    lost: int
    wrong: list[str]


def chain(
    work: Any, folder: Path, expected: End, found: Any, chance: np.random.Generator, most: int
) -> Chain:
    """Stops a work up to `most` times in one folder, then lets it end, and compares.

    Args:
      work: a `Work`.
      folder: new.
      expected: how the call ended that nobody stopped.
      found: what it left.
      chance: draws the faults.
      most: stops.
    """
    asked(work.begin, folder)
    done = Chain(Counter(), Counter(), 0, [])
    lost, saved, log = 0, 0, []
    for _ in range(most):
        fault = draw(chance, expected.places, work.stops)
        clock = DAY if chance.random() < 0.5 else 0.0
        if clock and not log:
            age(folder, -DAY)
        end = start(work.run, folder, fault, clock)
        log.append(f"{fault}{' with the clock set back' if clock else ''} -> {end.code}")
        wrong = problem_of(fault, end)
        if wrong:
            done.wrong.append(f"{work.name}: {wrong} after {log}:\n{end.output[-3000:]}")
        now = asked(work.saved, folder)
        if now < saved:
            lost += 1
            done.wrong.append(f"{work.name}: {saved} was saved, now {now}, after {log}")
        resumed = re.search(r"resuming .* at step (\d+)", end.output)
        if resumed and work.name == "training" and int(resumed[1]) != saved:
            done.wrong.append(f"{work.name}: resumed at {resumed[1]} of {saved} after {log}")
        saved = now
        if end.code == 0:
            break
        done.stops[fault.kind] += 1
        done.places[fault.place] += 1
    end = start(work.run, folder, None)
    if end.code:
        done.wrong.append(f"{work.name}: the last start failed after {log}: {end.output[-3000:]}")
    elif (left := asked(work.found, folder)) != found:
        done.wrong.append(f"{work.name}: after {log}: {difference(left, found)}")
    return done._replace(lost=lost)


def difference(left: Any, right: Any, name: str = "") -> str:
    """Where two results differ first."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}, key=str):
            if left.get(key) != right.get(key):
                return difference(left.get(key), right.get(key), f"{name}/{key}")
    return f"{name} is {left!r}, uninterrupted {right!r}"


def two_starters(
    work: Any, folder: Path, found: Any, chance: np.random.Generator, places: Sequence[str]
) -> list[str]:
    """Two calls at once, of which the first may be killed; what is wrong then."""
    asked(work.begin, folder)
    fault = draw(chance, places, [KILL]) if chance.random() < 0.5 else None
    first = launch(work.run, folder, fault)
    time.sleep(float(chance.uniform(0.0, 1.5)))
    second = launch(work.run, folder, None)
    ends = [wait_for(*first), wait_for(*second)]
    told = f"two starters, {fault}: exit codes {[end.code for end in ends]}"
    is_told = [end.code == 2 and "is written by a training (process" in end.output for end in ends]
    wrong = []
    for end, refused in zip(ends, is_told, strict=True):
        if end.code not in (0, -signal.SIGKILL) and not refused:
            wrong.append(f"{told}: {end.output[-3000:]}")
    if all(is_told):
        wrong.append(f"{told}: neither went on")
    end = start(work.run, folder, None)
    if end.code or (left := asked(work.found, folder)) != found:
        wrong.append(f"{told}, then {end.code} {difference(left, found)}{end.output[-2000:]}")
    return wrong


def main() -> int:
    """Stops works as often as asked."""
    from fault_works import works

    count, seed = (int(word) for word in (*sys.argv[1:3], *("100", "0")[len(sys.argv[1:3]) :]))
    warnings.simplefilter("ignore", RuntimeWarning)  # jax's of forks: nothing was started yet
    chance, stops, places = np.random.default_rng(seed), Counter(), Counter()
    lost, wrong, seconds = 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        base, references = Path(place), {}
        todo = works(base)
        for work in todo:
            asked(work.begin, base / work.name)
            end = start(work.run, base / work.name, None)
            assert end.code == 0, end.output
            references[work.name] = end, asked(work.found, base / work.name)
        number = 0
        while stops.total() < count:
            work = todo[number % len(todo)]
            most = min(CHAIN, count - stops.total())
            done = chain(work, base / f"chain_{number}", *references[work.name], chance, most)
            stops, places, lost = stops + done.stops, places + done.places, lost + done.lost
            wrong += done.wrong
            number += 1
        pairs = max(1, count // 10)
        end, found = references[todo[0].name]
        for pair in range(pairs):
            wrong += two_starters(todo[0], base / f"pair_{pair}", found, chance, end.places)
    print("\n\n".join(wrong))
    print(f"{stops.total()} stops in {number} folders: {dict(stops)}")
    print(f"at {dict(sorted(places.items()))}; {pairs} times two starters")
    print(f"{lost} finished saves lost, {len(wrong)} deviations, "
          f"{time.monotonic() - seconds:.0f} s")  # fmt: skip
    return 1 if wrong or lost else 0


if __name__ == "__main__":
    sys.exit(main())
