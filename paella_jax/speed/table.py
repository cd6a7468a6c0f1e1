"""A benchmark's rows for people, as they are measured and from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paella_jax.files.kept import read_kept

KEY = ("preset", "swept", "work", "images")  # of a row
COLUMNS = {
    "preset": "preset",
    "swept": "with",
    "work": "work",
    "images": "images",
    "milliseconds": "ms",
    "images_per_second": "images/s",
    "teraflops": "TFLOP",
    "share_of_products": "of the products' ceiling",
    "share_of_memory": "of the memory's",
    "peak_mib": "MiB",
    "compile_seconds": "compiled, s",
    "peer_times_as_long": "peers take",
}


def of_files(files: Sequence[Path]) -> str:
    """Markdown of what `--out` left, a heading for each file; also where a call was stopped.

    Raises:
      CheckpointError: a file is missing, damaged, or holds something else.
    """
    parts = []
    for file in files:
        report = read_kept(file, "device", "jax", "rows")
        about = json.dumps({name: x for name, x in report.items() if name != "rows"})
        parts.append(f"## {file.stem}\n\n{about}\n\n{as_table(report['rows'])}\n")
    return "\n".join(parts)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown; an error stands in place of the numbers."""
    shown = [
        {"milliseconds": row.get("error", "")} | row | _compiled(row) | _of_peers(row)
        for row in rows
    ]
    names = [name for name in COLUMNS if name in KEY[2:] or any(row.get(name) for row in shown)]
    lines = [
        "| " + " | ".join(COLUMNS[name] for name in names) + " |",
        "|" + "---|" * len(names),
    ]
    for row in shown:
        lines.append("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")
    return "\n".join(lines)


def _compiled(row: dict[str, Any]) -> dict[str, str]:
    return {"compile_seconds": "from the cache"} if row.get("from_cache") else {}


def _of_peers(row: dict[str, Any]) -> dict[str, str]:
    ratios = {name: f"{x}x" for name, x in row.get("peer_times_as_long", {}).items()}
    told = ratios | row.get("peer_errors", {})
    return {"peer_times_as_long": ", ".join(f"{name} {words}" for name, words in told.items())}
