"""Records of any format (records.py) as a source of captioned images, cropped for training."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from paella_jax.config import UserError
from paella_jax.data.cropping import Cropping, cover, covering_size
from paella_jax.data.records import UNREADABLE, Record, Records
from paella_jax.files.disk import is_outage, patiently
from paella_jax.images.decode import shown_size
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_rgb
from paella_jax.outside import say

MAX_BROKEN_FRACTION = 0.1
MANY = 8  # broken samples in a row that make one ask whether the data is there at all
PROBED = 256  # samples whose captions and headers are read before the first step
ENOUGH = 2  # times the needed size: what a JPEG keeps when it is decoded at a fraction


class BrokenDataError(UserError, RuntimeError, ValueError):
    """Too many samples cannot be read; the message names the last one and the reason."""


@dataclass
class CaptionedImages:
    """Images whose short side is resized, cropped to a square, with one of their captions.

    `source[i]` is always cropped at the centre, with its first caption; `source.draw(i, rng)` is
    what training reads: any of its captions, and the random crop and flip that were asked for.

    An unreadable sample is replaced by the next readable one, counted and reported; when more than
    one in ten is broken, the run stops. A missing image and a missing or empty caption count as
    broken. Some samples are looked at before the first step. Where a disk or network fails, reading
    is tried again, and where samples that were read before cannot be read either, the run stops.

    Attributes:
      records: where they are.
      cropping: what is made of them.
      lines_are_captions: whether lines of a text are captions already, so that nothing is advised.
      broken: positions of the samples found broken so far.
      some_captions: those of the samples that were looked at.
      good: position of a sample that could be read.

    Raises:
      ValueError: too many missing or unreadable images or captions.
      OSError: in reading, the data is not there any more.
    """

    records: Records
    cropping: Cropping
    lines_are_captions: bool = False
    broken: set[int] = field(default_factory=set)
    some_captions: list[str] = field(default_factory=list, repr=False)
    good: int | None = None

    def __post_init__(self) -> None:
        self.notes = Notes(self.records.owner)
        self._find_missing()
        self._probe()

    def _find_missing(self) -> None:
        """Counts what is known to be missing before anything is read."""
        for position, reason in self.records.missing():
            name = self.records.name(position)
            say(f"skipping broken sample {name}: {reason}")
            self.broken.add(position)
            if self._too_many():
                raise BrokenDataError(
                    f"{self.records.owner}: more than {len(self.broken) - 1} of {len(self)} "
                    f"samples lack their image or caption, the last: {name} ({reason}); clean the "
                    "data"
                )

    def _probe(self) -> None:
        """Reads some captions and headers, so that data of unreadable ones ends here."""
        places = np.linspace(0, len(self) - 1, min(PROBED, len(self)))
        several = failed = 0
        for position in sorted(set(places.round().astype(int).tolist()) - self.broken):
            try:
                record = self._read(position)
                shown_size(record.image, self.notes)
                self.good = position
            except UNREADABLE as error:
                failed += 1
                self._skip(position, error)
                if failed > most_broken(len(places)):
                    last = f"{self.records.name(position)} ({error})"
                    raise self._broken(failed, len(places), last) from error
                continue
            self.some_captions += record.captions
            several += "\n" in record.captions[0]
        if several and not self.lines_are_captions:
            say(
                f"{self.records.owner}: {several} of {len(places)} captions have several lines, "
                "each text is one caption; --config.data.caption_lines=True makes each line one"
            )

    def _too_many(self) -> bool:
        count, of = len(self.broken), len(self)
        return count > most_broken(of) or count == of

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample: `image` uint8 [image_size, image_size, 3], `caption` str, `index` int, `group`
        str where the record has one, and aMUSEd's `micro_conds` float32 [5]: the file's width and
        height, the crop's top and left in the resized image, and a fixed aesthetic score."""
        return self._sample(int(index), None)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample of `source[index]`, cropped and flipped by `rng` where that was asked for."""
        return self._sample(int(index), rng)

    def _sample(
        self, index: int, rng: np.random.Generator | None, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """The sample at `index`, or the next readable one; `size` (height, width) if not square."""
        size = size or (self.cropping.image_size, self.cropping.image_size)
        in_a_row = 0
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            if position in self.broken:
                continue
            try:
                record = patiently(partial(self._read, position))
                cropped = patiently(partial(self._crop, record, size, rng))
            except UNREADABLE as error:
                in_a_row += 1
                if is_outage(error) or in_a_row == MANY:
                    self._check_there(error)
                self._skip(position, error)
                continue
            self.good = position
            # Only where there is a choice: the chance of other samples stays as it is.
            chance = rng if len(record.captions) > 1 else None
            choice = 0 if chance is None else int(chance.integers(len(record.captions)))
            said = {"caption": record.captions[choice], "index": index}
            return said | ({"group": record.group} if record.group else {}) | cropped
        raise BrokenDataError(f"no readable sample in {self.records.owner}")

    def _check_there(self, error: Exception) -> None:
        """Raises OSError where a sample that was read before cannot be read any more either."""
        if self.good is None:
            return
        try:
            shown_size(self._read(self.good).image, self.notes)
        except UNREADABLE as again:
            gone = f"its samples cannot be read any more, the last: {error}"
            raise OSError(errno.EIO, gone, self.records.owner) from again

    def _read(self, position: int) -> Record:
        record = self.records.read(position)
        for caption in record.captions:
            caption.encode()  # half a surrogate pair, as json may hold, is no text
        return record

    def _crop(
        self, record: Record, size: tuple[int, int], rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """The record's image, read, resized and cropped to a (height, width)."""
        cropping, at_least = self.cropping, None
        covered, original_size = cropping.covering(size), None
        if cropping.draft:
            original_size = shown_size(record.image, self.notes)
            width, height = covering_size(original_size, *covered)
            at_least = (ENOUGH * width, ENOUGH * height)
        image = read_rgb(record.image, cropping.background, self.notes, at_least)
        return cropping.apply(cover(image, *covered), original_size or image.size, size, rng)

    def _skip(self, position: int, error: Exception) -> None:
        """Counts a broken sample. Raises BrokenDataError where there are too many."""
        self.broken.add(position)
        name = self.records.name(position)
        reason = str(error).removeprefix(f"{name} ")  # which image errors begin with
        say(f"skipping broken sample {name}: {reason}")
        if self._too_many():
            self._check_there(error)
            raise self._broken(len(self.broken), len(self), f"{name} ({reason})") from error

    def _broken(self, count: int, of: int, last: str) -> BrokenDataError:
        owner = self.records.owner
        return BrokenDataError(
            f"{count} of {of} samples in {owner} are broken, the last: {last}; clean the data"
        )


def most_broken(of: int) -> float:
    """How many of so many samples may be broken."""
    return max(MAX_BROKEN_FRACTION * of, 3)
