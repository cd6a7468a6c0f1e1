"""A profile of one call, and what takes most of its time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax

TOP = 10
NO_WORK = ("end: ", "Thunk")  # of a CPU's profile: ends of operations, and who runs them


class Share(NamedTuple):
    """What one kind of operation took of a profile.

    Attributes:
      name: the operation's, without the number that tells it from its like.
      milliseconds: of all of its calls.
      calls: how many there were.
      share: of all operations' time.
    """

    name: str
    milliseconds: float
    calls: int
    share: float


def profiled(call: Any, folder: str | Path) -> list[Share]:
    """Profiles one call, and says which operations took longest.

    Args:
      call: called once; what it returns is waited for.
      folder: the profile goes there, as TensorBoard, XProf and Perfetto open it.

    Returns:
      The ten longest, of the first device; on CPU of all threads that compute.
    """
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        jax.block_until_ready(call())
    (newest,) = sorted(Path(folder).glob("plugins/profile/*/*.xplane.pb"))[-1:]
    return longest(jax.profiler.ProfileData.from_file(str(newest)))


def longest(profile: Any) -> list[Share]:
    """The ten kinds of operations that took longest in a profile."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for line in _lines(profile):
        for event in line.events:
            if event.duration_ns > 0 and not event.name.startswith(NO_WORK):
                name = _kind(event.name)
                total[name] += event.duration_ns
                calls[name] += 1
    everything = max(total.total(), 1)
    return [
        Share(name, round(nanoseconds / 1e6, 3), calls[name], round(nanoseconds / everything, 4))
        for name, nanoseconds in total.most_common(TOP)
    ]


def _lines(profile: Any) -> list[Any]:
    """Where operations are timed: a GPU's streams, a TPU's operations, or the CPU's threads."""
    planes = list(profile.planes)
    devices = sorted((p for p in planes if p.name.startswith("/device:")), key=lambda p: p.name)
    for plane in devices:
        lines = list(plane.lines)
        ops = [line for line in lines if line.name == "XLA Ops"]
        streams = [line for line in lines if line.name.startswith("Stream")]
        if ops or streams:
            return ops if plane.name.startswith("/device:TPU") else streams or ops
    return [
        line
        for plane in planes
        if plane.name == "/host:CPU"
        for line in plane.lines
        if "XLA" in line.name or "tf_" in line.name
    ]


def _kind(name: str) -> str:
    """An operation's name without its number: `loop_fusion.12` and `loop_fusion` are of a kind."""
    return name.split(".")[0] if name.rpartition(".")[2].isdigit() else name
