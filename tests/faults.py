"""Stops works at every place where they touch files, and starts them again until they are done.

`python tests/faults.py [COUNT] [SEED] [whole]` stops trainings, encodings, comparisons and votes
COUNT times (default 100) at places that are drawn by SEED: by SIGKILL at a file-system event or
some milliseconds behind it, by SIGTERM and SIGINT, by a disk that is full or read-only from then
on. Every second time the clock is set back. In the end each folder must be what one call that
nobody stopped leaves, bit for bit. Prints what it did and every deviation; exit code 1 if there is
one. With `whole` it is `paella_jax.compare` from its tokenizer to its page. `python tests/faults.py
disks WORK ...` draws nothing: the disk of each work is full, then read-only, from the first event
at each of its places on.

The works run in processes that are forked from this one, which has imported all and started
nothing, so that a start takes a second.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fault_comparison import whole_comparison
from fault_events import (
    FULL,
    INT,
    KILL,
    LATER,
    READ_ONLY,
    TERM,
    End,
    Fault,
    asked,
    launch,
    start,
    wait_for,
)
from fault_works import Work, works

LONGEST = 0.03  # seconds that a late kill waits
DAY = 86_400.0
CHAIN = 5  # stops of one folder, at most


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
    work: Work, folder: Path, expected: End, found: Any, chance: np.random.Generator, most: int
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
    return f"{name} is {shortened(left)}, uninterrupted {shortened(right)}"


def shortened(value: Any, most: int = 500) -> str:
    """Its beginning: a whole run folder says nothing to a reader."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def two_starters(
    work: Work, folder: Path, found: Any, chance: np.random.Generator, places: Sequence[str]
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


def failing_disks(
    work: Work, base: Path, expected: End, found: Any, kinds: Sequence[str] = (FULL, READ_ONLY)
) -> tuple[int, list[str]]:
    """A disk that fails at the first event of each place; how many, and every deviation."""
    faults = [Fault(kind, place, 1) for place in sorted({*expected.places}) for kind in kinds]
    wrong = []
    for number, fault in enumerate(faults):
        folder = base / f"{work.name}_{number}"
        asked(work.begin, folder)
        end = start(work.run, folder, fault)
        told = problem_of(fault, end) or ("" if end.code else "it was not told")
        again = start(work.run, folder, None)
        if told or again.code:
            wrong.append(f"{work.name}, {fault}: {told}, then {again.code}: "
                         f"{end.output[-2000:]}{again.output[-2000:]}")  # fmt: skip
        elif (left := asked(work.found, folder)) != found:
            wrong.append(f"{work.name}, {fault}: {difference(left, found)}")
    return len(faults), wrong


def disks(names: Sequence[str]) -> int:
    """Lets the disk of some works fail at each of their places."""
    with tempfile.TemporaryDirectory() as place:
        base, count, wrong = Path(place), 0, []
        for work in (work for work in works(base) if work.name in names):
            expected = uninterrupted(work, base / work.name)
            tried, deviations = failing_disks(work, base, *expected)
            count, wrong = count + tried, wrong + deviations
    print("\n\n".join(wrong))
    print(f"{count} failing disks, {len(wrong)} deviations")
    return 1 if wrong or not count else 0


def uninterrupted(work: Work, folder: Path) -> tuple[End, Any]:
    """How a work ends that nobody stops, and what it leaves."""
    asked(work.begin, folder)
    end = start(work.run, folder, None)
    assert end.code == 0, end.output
    return end, asked(work.found, folder)


def main() -> int:
    """Stops works as often as asked."""
    warnings.simplefilter("ignore", RuntimeWarning)  # jax's of forks: nothing was started yet
    if sys.argv[1:2] == ["disks"]:
        return disks(sys.argv[2:])
    words = [*sys.argv[1:], *("100", "0", "")[len(sys.argv[1:]) :]]
    count, seed, is_whole = int(words[0]), int(words[1]), words[2] == "whole"
    chance, stops, places = np.random.default_rng(seed), Counter(), Counter()
    lost, wrong, seconds = 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        base, references = Path(place), {}
        todo = [whole_comparison()] if is_whole else works(base)
        for work in todo:
            references[work.name] = uninterrupted(work, base / work.name)
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
