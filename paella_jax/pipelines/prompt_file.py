"""A file of prompts, row by row: what to draw, with which seed and settings, under which name.

Lines of text, or a table with a header: JSON lines (`.jsonl`), `.csv` or `.tsv`. Rows are read
when they are asked for, so that a file of any length takes no memory. Every error names the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.data.tables import read_rows
from paella_jax.encoders.byte_tokenizer import PromptError

TABLES = (".jsonl", ".csv", ".tsv")
# what a row says -> the names its column may have
COLUMNS = {
    "prompt": ("prompt", "text", "caption"),
    "negative_prompt": ("negative_prompt", "negative"),
    "seed": ("seed",),
    "file": ("file", "file_name", "filename", "name"),
    "height": ("height",),
    "width": ("width",),
    "num_steps": ("num_steps", "steps"),
    "guidance_scale": ("guidance_scale", "guidance", "cfg"),
    "temperature": ("temperature",),
}
SETTINGS = ("height", "width", "num_steps", "guidance_scale", "temperature")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LONGEST_NAME = 200  # bytes; file systems take 255, and parts of files get longer names
SEEDS = 2**32


class Row(NamedTuple):
    """One prompt to draw.

    Attributes:
      where: "FILE, row N", for messages.
      prompt: text.
      negative_prompt: what to steer away from; may be empty.
      seed: its own.
      file: name of its image in the folder.
      settings: (name, value) of those in `SETTINGS` that are given.
    """

    where: str
    prompt: str
    negative_prompt: str
    seed: int
    file: str
    settings: tuple[tuple[str, Any], ...] = ()


class Defaults(NamedTuple):
    """What a row has that says nothing of it.

    Attributes:
      negative_prompt: of all rows.
      seed: of the first row; the next have the numbers after it.
      settings: by name; None where the run decides.
    """

    negative_prompt: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = {}


def read_prompt_file(file: Path, defaults: Defaults) -> Iterator[Row]:
    """The rows of a file of prompts, one after another.

    Raises:
      PromptError, ValueError: the file cannot be read or is not UTF-8, a row has no prompt or a
        wrong value, or two rows have the same name; the message says which row.
    """
    names: dict[str, int] = {}  # of a table alone: lines of text are named by their number
    for index, (where, cells) in enumerate(_cells(file)):
        row = _row(where, cells, index, defaults)
        if file.suffix.lower() in TABLES:
            before = names.setdefault(row.file.casefold(), index)
            if before != index:
                raise PromptError(
                    f"{where}: {row.file} is the image of prompt {before + 1} of the file already; "
                    "names must differ, also where upper and lower case are the same"
                )
        yield row


def check_prompt_file(file: Path, defaults: Defaults) -> tuple[int, bool]:
    """Reads a file once to its end, keeping none of it; returns its number of rows.

    Returns:
      The number, and whether any row has settings of its own.

    Raises:
      PromptError, ValueError: as `read_prompt_file`, or there is no prompt.
    """
    count, usual, own = 0, given_settings(defaults.settings), False
    for row in read_prompt_file(file, defaults):
        count += 1
        own = own or row.settings != usual
    if not count:
        raise PromptError(f"{file} has no prompts; give one per line")
    return count, own


def ignored_columns(file: Path) -> list[str]:
    """Names of a table's columns that say nothing here, by its first row."""
    if file.suffix.lower() not in TABLES:
        return []
    known = {name for names in COLUMNS.values() for name in names}
    first: dict[str, Any] = next((cells for _, cells in read_rows(file)), {})
    return [str(name) for name in first if _plain(name) not in known]


def _cells(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and what it says by the keys of `COLUMNS`; blank cells say nothing."""
    if not file.is_file():
        raise PromptError(f"--prompts {file} is not a file")
    suffix = file.suffix.lower()
    if suffix == ".json":
        raise PromptError(f"{file}: give one JSON object per line, in a file named .jsonl")
    if suffix not in TABLES:
        yield from ((where, {"prompt": line}) for where, line in _lines(file))
        return
    keys = {name: key for key, names in COLUMNS.items() for name in names}
    for where, row in read_rows(file):
        cells: dict[str, Any] = {}
        for name, value in row.items():
            key = keys.get(_plain(name))
            if key is not None and value is not None and str(value).strip():
                cells.setdefault(key, value)
        if not any(_plain(name) in COLUMNS["prompt"] for name in row):
            raise PromptError(
                f"{where}: no column named prompt; found {[str(name) for name in row]} (the first "
                "line of a table names its columns)"
            )
        yield where, cells


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where each line with content is, and its text."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    yield f"{file}, line {number}", line.strip()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise PromptError(f"{file} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None
    except OSError as error:
        raise PromptError(f"{file} cannot be read: {error}") from error


def _plain(column: Any) -> str:
    return str(column).strip().lower().replace(" ", "_").replace("-", "_")


def _row(where: str, cells: Mapping[str, Any], index: int, defaults: Defaults) -> Row:
    texts = {}
    for name in ("prompt", "negative_prompt"):
        texts[name] = cells.get(name, defaults.negative_prompt if name != "prompt" else "")
        if not isinstance(texts[name], str):
            kind = type(texts[name]).__name__
            raise PromptError(f"{where}: {name} is of type {kind}; give a text")
        if not _is_unicode(texts[name]):
            raise PromptError(f"{where}: {name} holds half a surrogate pair; write it again")
        if "\0" in texts[name]:
            raise PromptError(f"{where}: {name} holds a zero byte; is this a file of text?")
    if not texts["prompt"].strip():
        raise PromptError(f"{where}: the prompt is empty; give a text to draw")
    settings = {**defaults.settings}
    for name in SETTINGS:
        if name in cells:
            settings[name] = CHECKS[name](where, name, cells[name])
    seed = (defaults.seed + index) % SEEDS
    if "seed" in cells:
        seed = _whole(where, "seed", cells["seed"], 0, SEEDS - 1)
    file = _name(where, str(cells["file"])) if "file" in cells else f"{index:05d}.png"
    return Row(where, texts["prompt"].strip(), texts["negative_prompt"].strip(), seed, file,
               given_settings(settings))  # fmt: skip


def given_settings(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Those of `SETTINGS` that are not left to the run, in their order."""
    return tuple((name, settings[name]) for name in SETTINGS if settings.get(name) is not None)


def _number(where: str, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise PromptError(f"{where}: {name} {value!r} is not a number")
    return number


def _whole(where: str, name: str, value: Any, least: int = 1, most: int = 2**20) -> int:
    """A whole number in a range. Raises PromptError."""
    number = _number(where, name, value)
    if number != int(number) or not least <= number <= most:
        raise PromptError(
            f"{where}: {name} {value!r} must be a whole number from {least} to {most}"
        )
    return int(number)


CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    "height": _whole,
    "width": _whole,
    "num_steps": _whole,
    "guidance_scale": _number,
    "temperature": _number,
}


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _name(where: str, given: str) -> str:
    """A file name inside the folder, ending in .png. Raises PromptError."""
    name = given.strip()
    if not _is_unicode(name):
        raise PromptError(f"{where}: the file's name holds half a surrogate pair; write it again")
    if any(ord(character) < 32 or character in '/\\:*?"<>|' for character in name):
        raise PromptError(f"{where}: {name!r} is no plain file name; leave folders and marks out")
    suffix = Path(name).suffix
    stem = name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name
    if not stem or stem.startswith(".") or len(stem.encode()) > LONGEST_NAME:
        raise PromptError(
            f"{where}: {name[:80]!r} is no file name of 1 to {LONGEST_NAME} bytes without a dot "
            "in front"
        )
    return f"{stem}.png"
