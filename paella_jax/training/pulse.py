"""A sign of life while something takes long: on a terminal a line that counts, in a log file lines.

XLA may compile for minutes and says nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

MOST = 32  # programs of one function that are kept
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
    """A compiled function that gives a sign of life whenever it is compiled, once per program.

    The programs of the `MOST` shapes that were used last are kept: JAX alone would keep all, and a
    server that draws images of any size would grow until it is killed.
    """

    def __init__(self, name: str, function: Callable[..., Any], **options: Any) -> None:
        """Compiles as `jax.jit` with these options does; `name` is what people are told."""
        self._name, self._function, self._options = name, function, options
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any, **static: Any) -> Any:
        """As the function; arguments by name are the static ones."""
        leaves, shape = jax.tree.flatten(inputs)
        kind = (
            shape,
            tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves),
            tuple(static.items()),
        )
        with self._lock:
            jitted = self._kept.get(kind)
            if jitted is not None:
                self._kept.move_to_end(kind)
        if jitted is not None:
            return jitted(*inputs, **static)
        jitted = jax.jit(_alone(self._function), **self._options)
        with pulse(f"compiling {self._name}"):
            result = jitted(*inputs, **static)
        with self._lock:
            self._kept[kind] = jitted
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        return result

    @property
    def count(self) -> int:
        """How many programs are kept."""
        with self._lock:
            return sum(jitted._cache_size() for jitted in self._kept.values())


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as another object: JAX forgets its programs when that is gone."""

    def called(*inputs: Any, **static: Any) -> Any:
        return function(*inputs, **static)

    return update_wrapper(called, function)
