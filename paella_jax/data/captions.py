"""Which images a folder offers and where their captions are.

Two layouts: `NAME.txt` (or `NAME.caption`, in any case) beside every image, or one
`metadata.jsonl` or `metadata.csv` in the folder with the columns `file_name` and `text` (or
`caption`), as the Hugging Face imagefolder has it. An image has several captions where the table
names it in several rows or its text is a list, or, with `lines`, where its text file has several
lines.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from paella_jax.data.listing import count_others, is_image, list_files
from paella_jax.data.tables import TABLES, read_rows
from paella_jax.files.digests import is_inside
from paella_jax.outside import shortened

CAPTION_COLUMNS = ("text", "caption", "captions", "texts")
CAPTION_SUFFIXES = (".txt", ".caption")
LONGEST_TEXT = 2**20  # bytes of a caption's file


class CaptionedFile(NamedTuple):
    """An image and where its captions are.

    Attributes:
      image: its file.
      caption: the texts themselves, the suffix of the file beside the image that holds them, or
        None where missing.
      split: what the table's split column says of it; empty without.
      lines: every line of the caption's file is a caption.
      group: what the table's column of groups says of it; empty without.
    """

    image: Path
    caption: tuple[str, ...] | str | None
    split: str = ""
    lines: bool = False
    group: str = ""

    def read_captions(self) -> list[str]:
        """Its captions, stripped, at least one. Raises ValueError or OSError where there is none.

        With `captions=False` the only one is empty.
        """
        if self.texts:
            return list(self.texts)
        file = self.text_file
        if file is None:
            raise ValueError("no caption")
        text = read_text(file)
        texts = [line.strip() for line in text.splitlines()] if self.lines else [text.strip()]
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError(f"no caption: {file.name} is empty")
        return texts

    @property
    def text_file(self) -> Path | None:
        """The file of its captions, if they are in one of its own."""
        return self.image.with_suffix(self.caption) if isinstance(self.caption, str) else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions that are known without reading a file."""
        return self.caption if isinstance(self.caption, tuple) else ()

    def read_caption(self) -> str:
        """The first of its captions."""
        return self.read_captions()[0]


def read_text(file: Path) -> str:
    """A caption's text file in UTF-8, without its byte order mark.

    Raises:
      ValueError: another encoding, too long or no file; OSError: it cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError(f"{file} is a folder, pipe or device")
    if status.st_size > LONGEST_TEXT:
        raise ValueError(f"{file} has {status.st_size} bytes; a caption has {LONGEST_TEXT} at most")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason}; save it as UTF-8") from None


def list_captioned(
    folder: Path,
    left_out: Counter[str],
    split_column: str = "",
    lines: bool = False,
    group_column: str = "",
) -> list[CaptionedFile]:
    """Every sample of a folder: the table's images in their order, else all below it, sorted.

    Args:
      folder: laid out as above.
      left_out: gets the number of what does not belong to it, by kind.
      split_column: of a table; empty for none.
      lines: every line of a text file is a caption of its own.
      group_column: of a table, that says what images are of; empty for none.

    Raises:
      ValueError: two tables, a damaged one, or one without file names, captions or that column.
    """
    table = find_table(folder)
    if table:
        samples = _from_table(table, split_column, group_column=group_column)
        _count_unnamed(table, samples, left_out)
        return samples
    if group_column:
        raise ValueError(
            f"data.folder {folder} has no {' or '.join(TABLES)} with a column {group_column!r}"
        )
    return _from_text_files(folder, left_out, lines)


def list_images(
    folder: Path, left_out: Counter[str], split_column: str = ""
) -> list[CaptionedFile]:
    """All images of a folder with empty captions (tokenizer training): no table chooses them.

    Args:
      folder: laid out as above.
      left_out: gets the number of what does not belong to it, by kind.
      split_column: of a table, where there is one that says of images which split they are in.

    Raises:
      ValueError: a damaged table, where it says that.
    """
    files = list_files(folder, left_out)
    used = lambda file: file.suffix.lower() in CAPTION_SUFFIXES or file.name in TABLES
    count_others(files, used, left_out)
    table = find_table(folder) if split_column else None
    rows = _from_table(table, split_column, captions=False) if table else []
    splits = {row.image: row.split for row in rows if row.split}
    return [CaptionedFile(f, ("",), splits.get(f, "")) for f in files if is_image(f)]


def find_table(folder: Path) -> Path | None:
    """The folder's table of captions. Raises ValueError where there are two."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"data.folder {folder} has both {' and '.join(TABLES)}; keep one")
    return tables[0] if tables else None


def _from_text_files(folder: Path, left_out: Counter[str], lines: bool) -> list[CaptionedFile]:
    files = list_files(folder, left_out)
    suffixes_of = _caption_suffixes(files)
    samples, texts = [], set()
    for file in files:
        if is_image(file):
            stem, _ = os.path.splitext(file)
            suffix = min(suffixes_of.get(stem, ()), key=_rank, default=None)
            samples.append(CaptionedFile(file, suffix, lines=lines))
            texts.add(f"{stem}{suffix}")
    count_others(files, lambda file: str(file) in texts, left_out)
    if samples and all(sample.caption is None for sample in samples):
        raise ValueError(
            f"data.folder {folder} has {len(samples)} images without captions: put NAME.txt beside "
            f"each image, or one {TABLES[0]} with file_name and text into the folder (a tokenizer "
            "needs none: --config.data.captions=False)"
        )
    return samples


def _caption_suffixes(files: list[Path]) -> dict[str, list[str]]:
    """Of every text file's name the suffixes that are there: one listing serves all images."""
    found: dict[str, list[str]] = {}
    for file in files:
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in CAPTION_SUFFIXES:
            found.setdefault(stem, []).append(suffix)
    return found


def _rank(suffix: str) -> tuple[int, bool]:
    """Which caption of an image counts: .txt before .caption, as it is usual before .TXT."""
    return CAPTION_SUFFIXES.index(suffix.lower()), suffix != suffix.lower()


def _from_table(
    table: Path, split_column: str, captions: bool = True, group_column: str = ""
) -> list[CaptionedFile]:
    samples: dict[str, CaptionedFile] = {}
    for where, row in read_rows(table):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: no file_name; found {sorted(map(shortened, row))}")
        if not is_inside(name):
            raise ValueError(
                f"{where}: file_name {shortened(name)!r} is no file below {table.parent}; give "
                "names relative to that folder"
            )
        name = PurePosixPath(name).as_posix()  # "./a.png" is the image "a.png" is
        split = str(row.get(split_column) or "").strip().lower() if split_column else ""
        before = samples.get(name)
        texts = _captions_of(row)
        if before is not None:
            if before.split != split:
                raise ValueError(f"{where}: {name} is in split {split!r} and in {before.split!r}")
            texts = (*before.texts, *texts)
        group = str(row.get(group_column) or "").strip() if group_column else ""
        file = table.parent / name
        samples[name] = CaptionedFile(file, texts or None, split, group=group)
    if captions and all(sample.caption is None for sample in samples.values()):
        raise ValueError(
            f"{table} has no captions for its {len(samples)} images; it needs a column named text "
            "or caption"
        )
    if group_column and not any(sample.group for sample in samples.values()):
        raise ValueError(f"{table} says nothing in a column {group_column!r}")
    return list(samples.values())


def _count_unnamed(table: Path, samples: list[CaptionedFile], left_out: Counter[str]) -> None:
    """Counts what is in a table's folder and not in the table, by kind."""
    files = list_files(table.parent, left_out)
    count_others(files, lambda file: file == table, left_out)
    named = {sample.image for sample in samples}
    others = [file for file in files if is_image(file) and file not in named]
    if others:  # the table may name them through other links than the lister goes
        targets = set(map(os.path.realpath, named))
        left_out[f"not in {table.name}"] += sum(os.path.realpath(f) not in targets for f in others)


def _captions_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The texts of a row's first column that has any; blank ones are none."""
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        values = value if isinstance(value, list) else [value]
        texts = tuple(v.strip() for v in values if isinstance(v, str) and v.strip())
        if texts:
            return texts
    return ()
