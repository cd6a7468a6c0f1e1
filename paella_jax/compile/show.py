"""The report of `compile` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def as_text(report: dict[str, Any]) -> str:
    """A page of text from a report; what is unknown for its target is left out."""
    return "\n".join(_lines(report))


TITLES = ("preset", "target", "mesh", "batch", "GiB of", "verdict", "images/s", "days", "compiled")


def as_table(reports: list[dict[str, Any]]) -> str:
    """Markdown, a row for each report of a train step."""
    rows = [TITLES, ("---",) * len(TITLES), *(_row(report) for report in reports)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _row(report: dict[str, Any]) -> tuple[Any, ...]:
    time = report.get("estimate", {})
    return (
        f"`{report['config']}`",
        report["target"].partition(" ")[0],
        " x ".join(str(size) for size in report["mesh"].values()),
        f"{report['batch_size']} in {report['micro_batches']}",
        f"{report['peak_mib'] / 1024:.1f} of {report.get('capacity_mib', 0) / 1024:.1f}",
        report.get("verdict", "").partition(":")[0],
        time.get("images_per_second", ""),
        time.get("days_of_recipe", ""),
        f"{report['compile_seconds']:.0f} s",
    )


def _lines(report: dict[str, Any]) -> Iterator[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    seconds = ", ".join(f"{name} {value} s" for name, value in report["seconds"].items())
    yield f"{report['preset']} {report['program']} on {report['target']}, mesh {mesh}"
    yield f"  batch {report['batch_size']} in {report['micro_batches']} micro-batch(es); {seconds}"
    yield (
        f"  {report['trained_parameters']:,} trained and {report['frozen_parameters']:,} frozen "
        f"parameters; {report['teraflops']} TFLOP a call"
    )
    yield "per device:"
    names = ("arguments", "temporaries", "peak", "capacity")
    memory = {name: report[f"{name}_mib"] for name in names if f"{name}_mib" in report}
    yield "  MiB: " + ", ".join(f"{name} {value}" for name, value in memory.items())
    if "verdict" in report:
        yield f"  {report['verdict']}"
    if "float32_share" in report:
        yield f"  {report['float32_share']:.1%} of the products are of float32"
    if "moved_mib" in report:
        yield f"  moved to and from memory: {report['moved_mib']} MiB"
        yield f"  collectives: {_counted(report)}"
        types = report["collective_types"]
        yield "  of types: " + (_pairs(types, " MiB") or "none")
    yield "  held, MiB: " + _pairs(report["held_mib_of"])
    yield "  whole on every device, MiB: " + (_pairs(report["replicated_mib_of"]) or "nothing")
    for title in ("largest_arguments", "largest_arrays", "largest_collectives"):
        if report.get(title):
            yield f"  {title.replace('_', ' ')}:"
            yield from (f"    {line}" for line in report[title])
    if "estimate" in report:
        yield from _time(report["estimate"])


def _counted(report: dict[str, Any]) -> str:
    sizes = report["collective_mib"]
    kinds = report["collectives"].items()
    return ", ".join(f"{kind} {count} x ({sizes[kind]} MiB)" for kind, count in kinds) or "none"


def _pairs(values: dict[str, Any], unit: str = "") -> str:
    return ", ".join(f"{name} {value}{unit}" for name, value in values.items())


def _time(estimate: dict[str, Any]) -> Iterator[str]:
    yield "time, estimated:"
    yield "  seconds at peak: " + _pairs(estimate["seconds_at_peak"])
    yield (
        f"  a call: at least {estimate['seconds_bound']} s ({estimate['bound_by']}), about "
        f"{estimate['seconds_estimated']} s, {estimate['images_per_second']} images/s together"
    )
    if "days_of_recipe" in estimate:
        yield f"  {estimate['days_of_recipe']} days for all steps of the recipe"
    yield f"  ({estimate['assumptions']})"
