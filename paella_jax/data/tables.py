"""Rows of a table, as JSON lines, CSV or TSV; every error names the file and the row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paella_jax.outside import escaped, shortened

TABLES = ("metadata.jsonl", "metadata.csv")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LONGEST_FIELD = 2**24  # characters in CSV: tables may hold more than captions, such as thumbnails


def read_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, "TABLE, row N" from 1, and the row; lines without content are skipped.

    Raises:
      ValueError: the table cannot be read, is not UTF-8, or a row is damaged.
    """
    read = _csv_rows if table.suffix.lower() in DELIMITERS else _json_rows
    try:
        for number, row in read(table):
            yield f"{table}, row {number}", row
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{table} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    usual = csv.field_size_limit(LONGEST_FIELD)
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            # Strict, or a quote that is not closed would take the rows after it for its text.
            delimiter = DELIMITERS[table.suffix.lower()]
            reader = csv.DictReader(opened, delimiter=delimiter, strict=True)
            yield from _checked(table, reader)
    finally:
        csv.field_size_limit(usual)


def _checked(table: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows and their numbers; raises ValueError for damaged ones and for too many fields."""
    number, began = 0, 1
    try:
        columns = reader.fieldnames or ()
        while True:
            began = reader.reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            number += 1
            if None in row:  # where `csv` puts fields without a column
                kind = "tabs" if table.suffix.lower() == ".tsv" else "commas"
                raise ValueError(
                    f"{table}, row {number} has more fields than the header's "
                    f'{len(columns)} (line {began}); put texts with {kind} in quotes: "a text"'
                )
            yield number, row
    except csv.Error as error:
        where, reason = f"{table}, line {began}", str(error)
        if "field limit" in reason:
            raise ValueError(f"{where}: {reason}") from error
        reason = escaped(reason.replace("unexpected end of data", "a quote does not end"))
        raise ValueError(
            f"{where}: row {number + 1} is damaged: {reason}; put its text in quotes and double "
            "each quote that is in it"
        ) from error


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{table}, row {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                shown = shortened(line.strip(), 80)
                raise ValueError(f"{table}, row {number} is not a JSON object: {shown}")
            yield number, row
