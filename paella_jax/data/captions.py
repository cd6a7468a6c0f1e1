"""Which images a folder offers and where their captions are.

Two layouts: `NAME.txt` beside every image, or one `metadata.jsonl` or `metadata.csv` in the folder
with the columns `file_name` and `text` (or `caption`), as the Hugging Face imagefolder has it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
TABLES = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")


class CaptionedFile(NamedTuple):
    """An image and its caption: the text itself, the file that holds it, or None where missing."""

    image: Path
    caption: str | Path | None

    def read_caption(self) -> str:
        """The text, stripped. Raises ValueError or OSError where there is none."""
        if self.caption is None:
            raise ValueError("no caption")
        text = self.caption
        return (text.read_text(encoding="utf-8") if isinstance(text, Path) else text).strip()


def list_captioned(folder: Path) -> list[CaptionedFile]:
    """Every sample of a folder: the table's rows in their order, else all images below it, sorted.

    Raises:
      ValueError: two tables, a damaged one, or one without file names or captions.
    """
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"data.folder {folder} has both {' and '.join(TABLES)}; keep one")
    return _from_table(tables[0]) if tables else _from_text_files(folder)


def list_images(folder: Path) -> list[CaptionedFile]:
    """All images below a folder, sorted, with empty captions (tokenizer training)."""
    return [CaptionedFile(file, "") for file in sorted(folder.rglob("*")) if _is_image(file)]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _from_text_files(folder: Path) -> list[CaptionedFile]:
    files = sorted(folder.rglob("*"))
    known = set(files)  # one listing instead of a look at the disk per caption
    text_of = lambda image: image.with_suffix(".txt")
    samples = [
        CaptionedFile(f, text_of(f) if text_of(f) in known else None) for f in files if _is_image(f)
    ]
    if samples and all(sample.caption is None for sample in samples):
        raise ValueError(
            f"data.folder {folder} has {len(samples)} images without captions: put NAME.txt beside "
            f"each image, or one {TABLES[0]} with file_name and text into the folder (a tokenizer "
            "needs none: --config.data.captions=False)"
        )
    return samples


def _from_table(table: Path) -> list[CaptionedFile]:
    samples = []
    for number, row in _rows(table):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{table}, row {number}: no file_name; found {sorted(map(str, row))}")
        texts = [row[c] for c in CAPTION_COLUMNS if isinstance(row.get(c), str)]
        samples.append(CaptionedFile(table.parent / name, texts[0] if texts else None))
    if all(sample.caption is None for sample in samples):
        raise ValueError(
            f"{table} has no captions in its {len(samples)} rows; it needs a column named "
            + " or ".join(CAPTION_COLUMNS)
        )
    return samples


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows, from 1; lines without content are skipped."""
    with table.open(encoding="utf-8-sig", newline="") as opened:
        if table.suffix == ".csv":
            yield from enumerate(csv.DictReader(opened), 1)
            return
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{table}, row {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{table}, row {number} is not a JSON object: {line.strip()[:80]}")
            yield number, row
