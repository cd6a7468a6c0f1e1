"""One program to be timed, and its measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from paella_jax.evaluation.flops import flops_by_type
from paella_jax.speed.arrays import filled
from paella_jax.training.compiled_step import MIB
from paella_jax.typing import Tree

LEAST_ROUNDS = 3


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
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    images: int
    counted: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    carries: bool = False


def measure(case: Case, seconds: float, held: Tree = None) -> dict[str, Any]:
    """Compiles a case and calls it for some seconds; the first call is not counted.

    Args:
      case: what to call.
      seconds: after which no further call begins; at least three are made.
      held: arrays that replace shapes of the arguments, by position.

    Returns:
      Compile seconds, median, least and number of the timed calls, images and FLOPs per second,
      and MiB that the program needs. With "error" where the device's memory does not suffice.
    """
    row: dict[str, Any] = {"work": case.name, "images": case.images}
    try:
        return row | _measure(case, seconds, held or {})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"error": "out of memory: " + str(error).splitlines()[0][:200]}


def _measure(case: Case, seconds: float, held: dict[int, Tree]) -> dict[str, Any]:
    began = time.perf_counter()
    compiled = case.function.lower(*case.arguments).compile()
    compile_seconds = time.perf_counter() - began
    given = [held[i] if i in held else filled(x, i) for i, x in enumerate(case.arguments)]
    times = _timed(compiled, given, seconds, case.carries)
    median = statistics.median(times)
    function, arguments = case.counted or (case.function, case.arguments)
    flops = flops_by_type(jax.make_jaxpr(function)(*arguments).jaxpr)
    memory: Any = compiled.memory_analysis()
    return {
        "compile_seconds": round(compile_seconds, 1),
        "calls": len(times),
        "milliseconds": round(1e3 * median, 3),
        "least_milliseconds": round(1e3 * min(times), 3),
        "images_per_second": round(case.images / median, 2),
        "teraflops": round(sum(flops.values()) / 1e12, 4),
        "teraflops_per_second": round(sum(flops.values()) / median / 1e12, 3),
        "arguments_mib": round(memory.argument_size_in_bytes / MIB),
        "temporaries_mib": round(memory.temp_size_in_bytes / MIB),
    }


def _timed(function: Any, given: list[Any], seconds: float, carries: bool) -> list[float]:
    times: list[float] = []
    end = 0.0
    while len(times) < LEAST_ROUNDS or time.perf_counter() < end:
        began = time.perf_counter()
        out = jax.block_until_ready(function(*given))
        now = time.perf_counter()
        if carries:
            given = [out[0], *given[1:]]
        if end:
            times.append(now - began)
        else:
            end = now + seconds  # the first call may still load what it needs
    return times
