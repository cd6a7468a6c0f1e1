"""The report of a compiled program: memory, traffic, what is replicated, and a roofline."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from paella_jax.compile.hlo import (
    Collective,
    bytes_moved,
    collectives_of,
    largest_arrays,
    read_program,
)
from paella_jax.compile.targets import Target
from paella_jax.training.compiled_step import MIB, bytes_per_device
from paella_jax.typing import Tree

SHOWN = 8  # largest arrays
UTILISATION = 0.4  # of the peak: what good training programs of this kind reach on these devices
ASSUMPTIONS = (
    "peak bfloat16 products, memory and links at full speed give the bound; the estimate takes "
    f"{UTILISATION:.0%} of the peak, or the bound where that is slower; nothing is measured"
)


def memory_report(compiled: Any, platform: str) -> dict[str, Any]:
    """MiB on one device, as XLA accounts for them.

    XLA:CPU's own peak leaves the temporaries out. There, and where a compiler gives none, it is
    their sum with the arguments and with the results that do not take a donated argument's place.
    """
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0)
    if platform == "cpu" or not peak:
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = arguments + temporaries + max(results, 0)
    code = memory.generated_code_size_in_bytes if platform == "tpu" else 0
    return {
        "arguments_mib": round(arguments / MIB),
        "temporaries_mib": round(temporaries / MIB),
        "peak_mib": round((peak + code) / MIB),
    }


def traffic_report(compiled: Any, devices: int) -> dict[str, Any]:
    """Collectives, bytes moved and the largest arrays, from the compiled text."""
    modules = compiled.runtime_executable().hlo_modules()
    program = read_program("\n".join(module.to_string() for module in modules))
    exchanges = collectives_of(program, devices)
    return {
        "collectives": _sums(exchanges, lambda c: c.runs),
        "collective_mib": _sums(exchanges, lambda c: c.runs * c.bytes / MIB),
        "collective_types": _sums(
            exchanges, lambda c: c.runs * c.bytes / MIB, lambda c: f"{c.kind} {c.dtype}"
        ),
        "largest_collectives": [
            f"{c.bytes / MIB:.0f} MiB {c.kind} {c.dtype} of {c.group} devices, {c.runs} x {c.label}"
            for c in sorted(exchanges, key=lambda c: -c.bytes * c.runs)[:SHOWN]
        ],
        "moved_mib": round(bytes_moved(program) / MIB),
        "largest_arrays": [
            f"{size / MIB:.0f} MiB {kind} {label}"
            for kind, size, label in largest_arrays(program, SHOWN)
        ],
        "exchanges": exchanges,
    }


def _sums(
    exchanges: Iterable[Collective], amount: Any, name: Any = lambda c: c.kind
) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for exchange in exchanges:
        sums[name(exchange)] += amount(exchange)
    return {key: round(value) for key, value in sorted(sums.items())}


def describe(compiled: Any, target: Target) -> dict[str, Any]:
    """All that the compiled program tells."""
    return memory_report(compiled, target.platform) | traffic_report(compiled, target.count)


OUT_OF_MEMORY = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
ALLOCATION = re.compile(r"Size: ([\d.]+[KMGT]?)\s+(?:Operator: op_name=\"([^\"]*)\")?")


def too_large(message: str) -> dict[str, Any] | None:
    """What a TPU's compiler says of a program that does not fit; None for another message."""
    found = OUT_OF_MEMORY.search(message)
    if found is None:
        return None
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    largest = [f"{size} {label}".strip() for size, label in ALLOCATION.findall(message)]
    return {
        "peak_mib": round(float(found[1]) * unit[found[2]] / MIB),
        "capacity_mib": round(float(found[3]) * unit[found[4]] / MIB),
        "largest_arrays": largest[:SHOWN],
    }


def verdict(peak_mib: float, capacity_mib: float) -> str:
    """Whether a peak fits, and by how much."""
    difference = abs(capacity_mib - peak_mib) / 1024
    share = peak_mib / capacity_mib
    if peak_mib <= capacity_mib:
        return f"fits: {share:.0%} of the memory, {difference:.1f} GiB left"
    return f"does not fit: {difference:.1f} GiB too much ({share:.0%} of the memory)"


def leaves_with_paths(trees: dict[str, Tree]) -> Iterator[tuple[str, Any]]:
    """(`tree/path/of/leaf`, leaf) of every array that a device holds."""
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}", leaf


def held_report(trees: dict[str, Tree]) -> dict[str, Any]:
    """What one device holds, the largest of it, and what is whole on every device."""
    leaves = list(leaves_with_paths(trees))
    share = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    ordered = sorted(leaves, key=lambda item: -share(item[1]))
    show = lambda name, leaf: f"{share(leaf) / MIB:.0f} MiB {leaf.dtype}{list(leaf.shape)} {name}"
    whole: Counter[str] = Counter()
    for name, leaf in leaves:
        if leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) > 1:
            whole[name.partition("/")[0]] += share(leaf)
    return {
        # On one device; XLA's arguments lack what the step does not read (a tokenizer's decoder).
        "held_mib_of": {name: round(bytes_per_device(tree) / MIB) for name, tree in trees.items()},
        "replicated_mib_of": {n: round(size / MIB) for n, size in whole.items() if size > MIB / 2},
        "largest_arguments": [show(name, leaf) for name, leaf in ordered[:SHOWN]],
    }


def estimate(
    target: Target, flops: float, moved: float, exchanges: Iterable[Collective], images: int
) -> dict[str, Any]:
    """Seconds of one call from the target's roofline.

    Args:
      target: with a chip.
      flops: of one device.
      moved: bytes to and from one device's memory.
      exchanges: the program's.
      images: of one call, on all devices.
    """
    chip = target.chip
    assert chip is not None
    exchanged = 0.0
    for exchange in exchanges:
        leaves_node = chip.node and exchange.span > chip.node
        # Across nodes the slow part: what all devices of a node send, over all of its adapters.
        exchanged += exchange.sent / (chip.network if leaves_node else chip.link)
    parts = {"products": flops / chip.flops, "memory": moved / chip.bandwidth, "links": exchanged}
    bound = max(parts.values())
    seconds = max(parts["products"] / UTILISATION, bound)
    return {
        "seconds_at_peak": {name: _short(value) for name, value in parts.items()},
        "bound_by": max(parts, key=lambda name: parts[name]),
        "seconds_bound": _short(bound),
        "seconds_estimated": _short(seconds),
        "images_per_second": _short(images / seconds),
        "assumptions": ASSUMPTIONS,
    }


def _short(value: float) -> float:
    """Three digits that count."""
    return float(f"{value:.3g}")
