"""What kind of captioned images lie at a place: a folder, shards, files of records, or TFDS's."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from paella_jax.config import IMPLIED
from paella_jax.data.build import FILES, open_files
from paella_jax.data.fields import Wanted
from paella_jax.data.files_of_records import expand_braces, find_files
from paella_jax.data.listing import is_image, list_files
from paella_jax.data.records import Records
from paella_jax.data.tfds_records import TfdsRecords, find_builder

PATTERNS = dict(FILES.values())  # field of a data block -> what its files' names look like
TFDS_FILES = ("dataset_info.json", "features.json")  # the first alone is also of `save_to_disk`
KINDS = "images, .tar, .array_record, .parquet or .arrow files"


def field_at(flag: str, place: str) -> str:
    """The field of a data block that would name what lies at a place, as "shards".

    Args:
      flag: that named it, for messages.
      place: a folder, or files as `find_files` takes them.

    Raises:
      ValueError: nothing is there, nothing that is read, or several kinds.
    """
    if "://" in place:
        raise ValueError(f"{flag} {place} is an address; copy the files to a disk and name them")
    found: dict[str, str] = {}
    for part in (p for whole in place.split("::") for p in expand_braces(whole)):
        for field, example in _fields_at(flag, part):
            found.setdefault(field, example)
    if not found:
        raise ValueError(f"{flag} {place} has none of these: {KINDS}")
    if len(found) > 1:
        examples = " and ".join(found.values())
        fields = " or ".join(f"--config.data.{field}=..." for field in found)
        raise ValueError(
            f"{flag} {place} has several kinds of data, as {examples}; give a place of one kind"
            + f" (with a run: {fields})"
        )
    (field,) = found
    if field == "folder" and not Path(place).expanduser().is_dir():
        raise ValueError(f"{flag} {place} names images themselves; give the folder they are in")
    return field


def _fields_at(flag: str, part: str) -> Iterator[tuple[str, str]]:
    """Fields that would name what lies at a path or glob, each with an example."""
    path = Path(part).expanduser()
    if path.is_dir():
        if all((path / name).is_file() for name in TFDS_FILES):
            yield "tfds", TFDS_FILES[0]
            return
        files: Iterable[Path] = list_files(path, Counter())
    elif path.is_file():
        files = [path]
    elif glob.has_magic(part):
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
    else:
        raise ValueError(
            f"{flag}: there is no {part}; a data set that TFDS knows by its name is "
            f"--config.data.tfds={part}"
        )
    seen = set()
    for file in files:
        field = _field_of(file)
        if field and field not in seen:
            seen.add(field)
            yield field, file.name


def _field_of(file: Path) -> str:
    """The field of a file's kind; empty for none."""
    if is_image(file):
        return "folder"
    return next((f for f, pattern in PATTERNS.items() if re.search(pattern, file.name)), "")


def records_at(flag: str, field: str, place: str, captions: bool) -> Records:
    """All records at a place that is no folder of images, of whatever split.

    Args:
      flag: as in `field_at`.
      field: what `field_at` found.
      place: likewise.
      captions: whether they are read; without, none need be there.

    Raises:
      ValueError: they are damaged, or lack images or captions.
    """
    owner, wanted = f"{flag} {place}", Wanted(captions=captions)
    if field == "tfds":
        return TfdsRecords(owner, find_builder(place, ""), "all", wanted)
    source = IMPLIED[f"data.{field}"]
    files = find_files(flag, place, PATTERNS[field])
    return open_files(source, owner, files, wanted, Counter())
