"""Images that are there already, to be scored or to score against: a folder's, or any source's."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from paella_jax.data.captioned import most_broken
from paella_jax.data.captions import (
    CAPTION_COLUMNS,
    CAPTION_SUFFIXES,
    CaptionedFile,
    find_table,
    list_captioned,
    list_images,
    read_text,
)
from paella_jax.data.listing import list_files
from paella_jax.data.places import field_at, records_at
from paella_jax.data.records import UNREADABLE, Record, Records
from paella_jax.data.tables import read_rows
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_rgb
from paella_jax.outside import say
from paella_jax.reports.gathered import ScoreError, first


class _Readable(Protocol):
    """What is asked of `data/records.py:Records` here."""

    def __len__(self) -> int: ...

    def name(self, position: int) -> str: ...

    def read(self, position: int) -> Record: ...


class ImageSet:
    """Images in the order of their names, one of which is in memory at a time.

    Attributes:
      place: where they are, for messages.
      records: to read them from.
      positions: of those records that are taken, in their order.
      unreadable: places, among the names, of images that were skipped.
    """

    def __init__(self, place: str, records: _Readable | Records) -> None:
        """Takes all records."""
        self.place, self.records = place, records
        self.positions = list(range(len(records)))
        self.unreadable: list[int] = []
        self._captions: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def names(self) -> list[str]:
        """What the images are called."""
        return [self.records.name(position) for position in self.positions]

    def take(self, count: int) -> None:
        """Leaves so many, evenly spaced."""
        self.positions = first(self.positions, count)

    def caption(self, captions: Sequence[str], source: str) -> None:
        """Sets the captions. Raises ScoreError where there is not one for each image."""
        if len(captions) != len(self):
            raise ScoreError(
                f"{source} has {len(captions)} prompts for {len(self)} images of {self.place}; "
                "give one per image, in the order of the file names"
            )
        self._captions = dict(enumerate(captions))

    def uncaptioned(self) -> str:
        """The name of the first image without a caption, as far as one knows before reading them.

        Empty where there is none, and of records other than a folder's, which are only taken with
        captions where those were asked for.
        """
        if not isinstance(self.records, _Folder):
            return ""
        for number, position in enumerate(self.positions):
            if not (self._captions.get(number) or self.records.caption(position)):
                return self.records.name(position)
        return ""

    def images(self) -> Iterator[np.ndarray]:
        """Images as uint8 [H, W, 3]. Unreadable ones are told and skipped.

        Raises:
          ScoreError: more than one in ten (and more than three) cannot be read.
        """
        notes = Notes(self.place)
        self.unreadable.clear()
        for number, position in enumerate(self.positions):
            try:
                record = self.records.read(position)
                image = np.asarray(read_rgb(record.image, notes=notes))
            except UNREADABLE as error:
                say(f"skipping {error}")
                self.unreadable.append(number)
                if len(self.unreadable) > most_broken(len(self)):
                    count = len(self.unreadable)
                    raise ScoreError(
                        f"{count} of {len(self)} images of {self.place} cannot be read, the last: "
                        f"{error}"
                    ) from error
                continue
            self._captions.setdefault(number, record.captions[0])
            yield image

    def read_captions(self) -> list[str]:
        """Captions of the images that could be read, after `images` has gone through.

        None where any of the images has none.
        """
        skipped = set(self.unreadable)
        texts = [self._captions[n] for n in range(len(self)) if n not in skipped]
        return texts if all(texts) else []


def open_images(flag: str, place: str, prompts: str = "", captions: bool = False) -> ImageSet:
    """The images at a place: a folder, or whatever else training reads.

    Args:
      flag: that named it, for messages.
      place: a folder of images; shards, ArrayRecord or parquet files, a data set of TFDS.
      prompts: a text file with a caption per line, for the images in their order.
      captions: whether captions are read where there are no prompts. Of other sources than folders
        they must be there then.

    Raises:
      ValueError: nothing of the kind is there, or another number of prompts than images.
    """
    captions = captions and not prompts
    try:
        field = field_at(flag, place)
        if field == "folder":
            records: _Readable = _Folder(Path(place).expanduser(), captions)
        else:
            records = records_at(flag, field, place, captions)
    except ScoreError:
        raise
    except ValueError as error:
        raise ScoreError(str(error)) from error
    images = ImageSet(place, records)
    if prompts:
        images.caption(read_prompts(prompts), prompts)
    return images


class _Folder:
    """All images below a folder, and their captions where they were asked for."""

    def __init__(self, root: Path, captions: bool) -> None:
        """Lists them; captions lie beside them as training reads them."""
        self.root = root
        self.files = [sample.image for sample in list_images(root, Counter())]
        self._captioned = _captioned(root, self.files) if captions else {}

    def __len__(self) -> int:
        return len(self.files)

    def name(self, position: int) -> str:
        """The image's path below the folder."""
        return str(self.files[position].relative_to(self.root))

    def caption(self, position: int) -> str:
        """An image's first caption; empty where none can be read, which harms no image."""
        sample = self._captioned.get(self.files[position])
        if sample is None or sample.caption is None:
            return ""
        try:
            return sample.read_caption()
        except UNREADABLE:
            return ""

    def read(self, position: int) -> Record:
        """An image's file and its first caption, an empty one where there is none."""
        return Record(self.files[position], [self.caption(position)])


def _captioned(root: Path, files: Sequence[Path]) -> dict[Path, CaptionedFile]:
    """Where the captions of a folder's images are; a text beside no image is none.

    Raises:
      ValueError: a damaged table.
    """
    table = find_table(root)
    if table:
        there = any(row.get(column) for _, row in read_rows(table) for column in CAPTION_COLUMNS)
    else:
        names = {os.path.splitext(file)[0] for file in files}
        texts = (os.path.splitext(file) for file in list_files(root, Counter()))
        there = any(s.lower() in CAPTION_SUFFIXES and name in names for name, s in texts)
    return {s.image: s for s in list_captioned(root, Counter())} if there else {}


def read_prompts(file: str) -> list[str]:
    """The lines of a text file, blank ones left out. Raises ScoreError where there are none."""
    if not Path(file).is_file():
        raise ScoreError(f"--prompts {file} is not a file")
    lines = [line.strip() for line in read_text(Path(file)).splitlines()]
    if not any(lines):
        raise ScoreError(f"--prompts {file} has no prompts; write one per line")
    return [line for line in lines if line]
