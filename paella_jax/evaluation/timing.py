"""Timing several functions against each other on a machine that other work shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call; one call of each variant per round, after one warm-up call each."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for function in variants.values():
        function()
    for _ in range(rounds):
        for name, function in variants.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return times
