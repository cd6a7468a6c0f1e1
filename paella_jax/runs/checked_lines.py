"""Lines of JSON that tell whether they are what was written: of metrics and of a run's history."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paella_jax.files.atomic import atomic_path
from paella_jax.outside import parse_json

CHECK = "crc32"  # of a line of metrics
LISTED = "digests.json"  # in a folder with one every line has a check: runs/digests.py sees to it


def scan_metrics(file: Path) -> tuple[list[dict[str, float]], list[int]]:
    """The rows of a metrics file, and the numbers of the lines that are none, from 1.

    Lines without a check are of folders of older versions, which have no list of digests either.
    """
    rows, damaged = [], []
    needs_check = (file.parent / LISTED).is_file()
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        row = _row(line, needs_check)
        if row is not None:
            rows.append(row)
        elif line.strip():
            damaged.append(number)
    return rows, damaged


def check_older_lines(file: Path) -> None:
    """Gives a check to the lines of an older version, as they are found; others stay."""
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    known = [_checked(line) for line in lines]
    if known != lines:
        with atomic_path(file) as part:
            part.write_bytes(b"\n".join(known))


def _checked(line: bytes) -> bytes:
    row = None if _row(line, needs_check=True) else _row(line)
    return line if row is None else metrics_line(row).rstrip("\n").encode()


def metrics_line(row: Mapping[str, Any]) -> str:
    """A row as a line, with a check of itself at its end."""
    text = json.dumps(row)
    return json.dumps({**row, CHECK: f"{zlib.crc32(text.encode()):08x}"}) + "\n"


def _row(line: bytes, needs_check: bool = False) -> dict[str, float] | None:
    """A line's row; None of one that is not what was written. Older lines have no check."""
    try:
        row = parse_json(line)
        check = row.pop(CHECK, None)
        is_row = isinstance(row["step"], int)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    if check is None:
        return row if is_row and not needs_check else None
    is_written = check == f"{zlib.crc32(json.dumps(row).encode()):08x}"
    return row if is_row and is_written else None
