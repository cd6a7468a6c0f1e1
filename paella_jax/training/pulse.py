"""A sign of life while something takes long: on a terminal a line that counts, in a log file lines.

XLA may compile for minutes and says nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

FIRST_SECONDS = 10.0  # until a log file is told again; each time it is then twice as long


@contextmanager
def pulse(what: str) -> Iterator[None]:
    """Says on stderr of process 0 that `what` goes on, how long it has, and that it is done."""
    if jax.process_index() != 0:
        yield
        return
    done, show = threading.Event(), _count if sys.stderr.isatty() else _tell
    teller = threading.Thread(target=show, args=(what, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _count(what: str, done: threading.Event) -> None:
    """A line of a terminal that counts seconds; it stays."""
    with tqdm(bar_format="{desc} ... {elapsed}", desc=what, leave=True) as line:
        while not done.wait(1.0):
            line.refresh()


def _tell(what: str, done: threading.Event) -> None:
    """Lines of a log file, ever fewer."""
    began, pause = time.perf_counter(), FIRST_SECONDS
    _say(f"{what} ...")
    while not done.wait(pause):
        _say(f"{what} ... {time.perf_counter() - began:.0f} s so far")
        pause *= 2.0
    _say(f"{what}: {time.perf_counter() - began:.1f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Program:
    """A compiled function that gives a sign of life whenever it is compiled, once per program."""

    def __init__(self, name: str, function: Callable[..., Any], **options: Any) -> None:
        """Compiles as `jax.jit` with these options does; `name` is what people are told."""
        self._name, self._jitted = name, jax.jit(function, **options)
        self._seen: set[Any] = set()

    def __call__(self, *inputs: Any, **static: Any) -> Any:
        """As the function; arguments by name are the static ones."""
        leaves, shape = jax.tree.flatten(inputs)
        kind = (
            shape,
            tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves),
            tuple(static.items()),
        )
        if kind in self._seen:
            return self._jitted(*inputs, **static)
        with pulse(f"compiling {self._name}"):
            result = self._jitted(*inputs, **static)
        self._seen.add(kind)
        return result
