"""One program to be timed, and its measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import jax

from paella_jax.compile.account import memory_report, traffic_report
from paella_jax.evaluation.flops import flops_by_type
from paella_jax.speed.arrays import filled

LEAST_ROUNDS = 3
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # jax's name of this event


@dataclass(frozen=True)
class Case:
    """A call with random arrays.

    Attributes:
      name: of the work, as in a table.
      function: under `jax.jit`.
      arguments: shapes; arrays stay what they are.
      images: made, read or learned from in one call.
      counted: (function, arguments) of the same arithmetic without loops of traced length; None
        where `function` has none.
      carries: whether the first output is the next call's first argument, as a train state.
      skipped: FLOPs of those counted that a call leaves out by what is in its arrays.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    images: int
    counted: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    carries: bool = False
    skipped: float = 0.0


def measure(
    case: Case, seconds: float, peers: Mapping[str, Callable[[], Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """Compiles a case and calls it for some seconds; the first call is not counted.

    Args:
      case: what to call.
      seconds: after which no further call begins; at least three are made.
      peers: the same work by others, by name; each is called once in every round.

    Returns:
      Compile seconds (of reading, with "from_cache", where an earlier process compiled it),
      median, least and number of the timed calls, images and FLOPs per second, bytes that the
      program moves at most, MiB that it needs, and of peers the median and how many times as long
      they take. With "error" where the device's or the host's memory does not suffice.
    """
    row: dict[str, Any] = {"work": case.name, "images": case.images}
    try:
        return row | _measure(case, seconds, peers)
    except NO_ROOM as error:
        return row | {"error": lack_of_memory(error)}


NO_ROOM = (MemoryError, jax.errors.JaxRuntimeError)


def lack_of_memory(error: BaseException) -> str:
    """What a row tells of an error about memory, the host's or a device's; raises any other."""
    lines = str(error).splitlines() or [""]
    if isinstance(error, MemoryError):
        return f"out of the host's memory: {lines[0][:200]}"
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return f"out of memory: {lines[0][:200]}"


@cache
def _read_programs() -> list[str]:
    """A list that grows with every program that is read from the persistent cache from now on."""
    read: list[str] = []
    note = lambda event, **_: read.append(event) if event == CACHE_HIT else None
    jax.monitoring.register_event_listener(note)
    return read


def _measure(case: Case, seconds: float, peers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    read_before = len(_read_programs())
    began = time.perf_counter()
    compiled = case.function.lower(*case.arguments).compile()
    compile_seconds = time.perf_counter() - began
    from_cache = len(_read_programs()) > read_before
    given = [filled(x, i) for i, x in enumerate(case.arguments)]
    times = interleaved_for({"": _caller(compiled, given, case.carries), **peers}, seconds)
    median = statistics.median(times[""])
    function, arguments = case.counted or (case.function, case.arguments)
    flops = sum(flops_by_type(jax.make_jaxpr(function)(*arguments).jaxpr).values()) - case.skipped
    row = {
        "compile_seconds": round(compile_seconds, 1),
        **({"from_cache": True} if from_cache else {}),
        "calls": len(times[""]),
        "milliseconds": round(1e3 * median, 3),
        "least_milliseconds": round(1e3 * min(times[""]), 3),
        "images_per_second": round(case.images / median, 2),
        "teraflops": round(flops / 1e12, 4),
        "teraflops_per_second": round(flops / median / 1e12, 3),
        "moved_mib": traffic_report(compiled, jax.device_count())["moved_mib"],
        **memory_report(compiled, jax.default_backend()),
    }
    theirs = {name: statistics.median(times[name]) for name in peers}
    if theirs:
        row["peer_milliseconds"] = {name: round(1e3 * x, 3) for name, x in theirs.items()}
        row["peer_times_as_long"] = {name: round(x / median, 2) for name, x in theirs.items()}
    return row


def _caller(compiled: Any, given: list[Any], carries: bool) -> Callable[[], None]:
    """Calls the program and waits; a state goes on from call to call."""

    def call() -> None:
        out = jax.block_until_ready(compiled(*given))
        if carries:
            given[0] = out[0]

    return call


def interleaved_for(
    calls: Mapping[str, Callable[[], Any]], seconds: float
) -> dict[str, list[float]]:
    """Seconds of every call, one of each per round, for some seconds after a first round.

    The first round is not counted: it may still load what is needed. At least three others are.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    while len(times[next(iter(calls))]) < LEAST_ROUNDS or time.perf_counter() < end:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times
