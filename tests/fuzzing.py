"""Files from outside, damaged at random: what every reader makes of them.

`python tests/fuzzing.py --minutes 10` (or `--trials 30000`, of each kind) reads damaged copies of
the valid examples of fuzz_examples.py in processes of their own, and counts by kind what was read,
what was refused in one clear line, and what was unclear: another error, a line without a name or
with control characters, or too much time or memory. Unclear inputs are kept in a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mutations
import numpy as np

from paella_jax.cli import LIKELY_USER_ERRORS
from paella_jax.config import UserError
from paella_jax.files import digests
from paella_jax.outside import escaped

READ, REFUSED, UNCLEAR = "read", "refused", "unclear"
SECONDS = 4.0  # of a small file; most take a thousandth of it
MEMORY = 400 * 2**20  # bytes that a reader may take more than any before it
BLOCK = 250  # trials of a process
KEPT = 3  # inputs of each unclear outcome


class Example(NamedTuple):
    """A valid input.

    Attributes:
      name: of it.
      folder: all that is read lies in it.
      damages: file in it -> how its bytes are damaged, besides at random.
      read: of a copy of the folder; everything that a user's command would read of it.
      share: how often it is chosen; slow readers less.
      names: that a clear message may have in place of the damaged file's.
    """

    name: str
    folder: Path
    damages: dict[str, Sequence[mutations.Mutation]]
    read: Callable[[Path], Any]
    share: float = 1.0
    names: Sequence[str] = ()


class Outcome(NamedTuple):
    """What a reader made of one input; `told` is the message, or where another error came from."""

    kind: str
    told: str = ""


class TooSlow(BaseException):
    """No reader may catch it."""


def judge(read: Callable[[Path], Any], folder: Path, names: Sequence[str]) -> Outcome:
    """Reads a folder and sorts what happens.

    Args:
      read: the reader.
      folder: of the damaged input.
      names: any one of which a clear message has.
    """
    output = io.StringIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), in_time():
            read(folder)
        outcome = Outcome(READ)
    except TooSlow as error:
        return Outcome(UNCLEAR, f"too slow: {where(error)}")
    except (UserError, *LIKELY_USER_ERRORS) as error:
        outcome = _refused(error, names)
    except Exception as error:
        return Outcome(UNCLEAR, f"{type(error).__name__} {where(error)}: {str(error)[:200]!r}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY:
        return Outcome(UNCLEAR, f"too much memory: {grown >> 20} MiB")
    if escaped(output.getvalue().replace("\n", "")) != output.getvalue().replace("\n", ""):
        return Outcome(UNCLEAR, f"control characters in the output: {output.getvalue()[:200]!r}")
    return outcome


def _refused(error: Exception, names: Sequence[str]) -> Outcome:
    message = str(error)
    if escaped(message) != message:
        return Outcome(UNCLEAR, f"control characters {where(error)}: {message[:200]!r}")
    if not any(name in message for name in names):
        return Outcome(UNCLEAR, f"no name {where(error)}: {type(error).__name__} {message[:200]!r}")
    if len(message) > 100_000:  # misfits of tensors are all listed
        return Outcome(UNCLEAR, f"a message of {len(message)} letters {where(error)}")
    return Outcome(REFUSED, message)


def where(error: BaseException) -> str:
    """The last place in this package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "paella_jax/" in f.filename] or frames
    return f"at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Ends what takes too long, and what asks for too much memory at once."""

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def damage(example: Example, folder: Path, draw: np.random.Generator) -> tuple[Path, bytes, str]:
    """Damages one file of a copy; the file, what it was, and in words what was done."""
    files = sorted(example.damages)
    file = folder / files[draw.integers(len(files))]
    data = file.read_bytes()
    if draw.random() < 0.03:
        return file, data, mutations.misplace(file, draw)
    own = example.damages[file.relative_to(folder).as_posix()]
    ways = [*own, mutations.mutate_bytes] if draw.random() < 0.95 else [mutations.mutate_bytes]
    done = []
    changed = data
    for _ in range(1 + int(draw.random() < 0.2)):
        way = ways[draw.integers(len(ways))]
        with contextlib.suppress(Exception):  # what it looks for was damaged before
            changed = way(changed, draw)
        done.append(way.__name__)
    mutations.put_back(file, changed)
    return file, data, " and ".join(done)


def trial(
    examples: Sequence[Example], copies: Path, seed: Sequence[int], keep: Path | None = None
) -> tuple[Outcome, str]:
    """One damaged input, made of its seed alone; kept where it is unclear."""
    draw = np.random.default_rng(seed)
    shares = np.array([example.share for example in examples])
    example = examples[draw.choice(len(examples), p=shares / shares.sum())]
    folder = copies / example.name
    if not folder.is_dir():
        shutil.copytree(example.folder, folder)
    file, data, done = damage(example, folder, draw)
    what = f"{example.name}/{file.relative_to(folder)}: {done}"
    try:
        # Of what lies in a folder that is in its place, the folder's name is enough where it lacks.
        names = [file.name] if file.is_file() else [file.name, folder.name]
        outcome = judge(example.read, folder, [*names, *example.names])
        if outcome.kind == UNCLEAR and keep is not None:
            place = keep / f"{example.name}-{'-'.join(map(str, seed))}"
            shutil.copytree(folder, place, symlinks=True, dirs_exist_ok=True)
            (place / "WHAT.txt").write_text(f"{what}\n{escaped(outcome.told)}\n")
    finally:
        mutations.put_back(file, data)
    return outcome, what


def run_block(
    examples: Sequence[Example], seed: Sequence[int], trials: range, log: Path, keep: Path
) -> None:
    """Trials in this process; each writes a line when it begins and one when it ends."""
    _limit_memory()
    digests._pool.cache_clear()  # its threads are in the process that this one came of
    with tempfile.TemporaryDirectory(dir=_memory_disk()) as place, log.open("a") as stream:
        os.environ["XDG_CACHE_HOME"] = place
        for number in trials:
            print(json.dumps([number]), file=stream, flush=True)
            (kind, told), what = trial(examples, Path(place), (*seed, number), keep)
            print(json.dumps([number, kind, told, what]), file=stream, flush=True)


def _limit_memory() -> None:
    """A few gigabytes more than what is mapped now, so that an absurd size fails at once."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _memory_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def fuzz(
    examples: Sequence[Example], seed: Sequence[int], count: int, keep: Path, until: float
) -> tuple[Counter[str], Counter[str]]:
    """Outcomes of so many trials, and what was unclear by where it came from."""
    counts: Counter[str] = Counter()
    unclear: Counter[str] = Counter()
    number = 0
    while number < count and time.monotonic() < until:
        with tempfile.NamedTemporaryFile("r") as log:
            child = os.fork()
            if not child:
                try:
                    run_block(examples, seed, range(number, min(number + BLOCK, count)),
                              Path(log.name), keep)  # fmt: skip
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            rows = [json.loads(line) for line in log]
        for row in rows:
            if len(row) > 1:
                counts[row[1]] += 1
                if row[1] == UNCLEAR:
                    unclear[f"{row[2].partition(': ')[0]} [{row[3].partition(':')[0]}]"] += 1
        number = rows[-1][0] + 1 if rows else number + BLOCK
        if rows and len(rows[-1]) == 1:  # the process died of it
            counts[UNCLEAR] += 1
            unclear[f"the process died of seed {(*seed, rows[-1][0])}"] += 1
    return counts, unclear


def main() -> None:
    import fuzz_examples

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--trials", type=int, default=30_000, help="of each kind")
    parser.add_argument("--kind", action="append", choices=fuzz_examples.KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="for what is unclear")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(fuzz_examples.KINDS)
    begun, bad = time.monotonic(), 0
    for place, kind in enumerate(kinds):
        left = arguments.minutes * 60 - (time.monotonic() - begun)
        until = time.monotonic() + left / (len(kinds) - place)
        with tempfile.TemporaryDirectory() as folder:
            examples = fuzz_examples.KINDS[kind](Path(folder))
            seed = (arguments.seed, list(fuzz_examples.KINDS).index(kind))
            keep = arguments.keep / kind
            counts, unclear = fuzz(examples, seed, arguments.trials, keep, until)
        total = ", ".join(f"{counts[name]} {name}" for name in (READ, REFUSED, UNCLEAR))
        print(f"{kind}: {sum(counts.values())} inputs, {total}", flush=True)
        for told, number in unclear.most_common(60):
            print(f"  {number} x {told}", flush=True)
        bad += counts[UNCLEAR]
    if bad:
        print(f"unclear inputs are in {arguments.keep}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
