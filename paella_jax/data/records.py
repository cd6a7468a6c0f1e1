"""What every source of captioned images offers: records that are read by their position.

A format is one class that lists its records once, holds no more of them than where they are, and
reads any of them from any thread. What is made of a record (the crop, the choice of a caption, the
counting of broken ones) is `captioned.py`'s, the same for all formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from paella_jax.data.split import Held, held_back, none_held
from paella_jax.images.decode import Encoded
from paella_jax.outside import say

# What a damaged image raises, and what a caption that is no text raises.
UNREADABLE = (OSError, ValueError)


class Record(NamedTuple):
    """An image as it is stored, with what is said of it.

    Attributes:
      image: its file, or its bytes.
      captions: at least one, stripped.
      group: what it is of, by the field that was asked for; empty for none.
    """

    image: Path | Encoded
    captions: list[str]
    group: str = ""


class Records(Protocol):
    """The records of a split.

    Attributes:
      owner: what they are, in messages, as in "data.folder photos".
    """

    owner: str

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """What messages call a record; reads nothing."""
        ...

    def missing(self) -> Iterable[tuple[int, str]]:
        """Positions of records that are known to lack something, and what; reads no record."""
        ...

    def read(self, position: int) -> Record:
        """A record. Raises one of UNREADABLE where it cannot be read."""
        ...


class Part:
    """Some of the records of another source, in its order."""

    def __init__(self, records: Records, positions: np.ndarray) -> None:
        """Those at `positions`, sorted, int64 [count]."""
        self.records, self.positions, self.owner = records, positions, records.owner

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """See `Records`."""
        return self.records.name(int(self.positions[position]))

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `Records`."""
        for position, reason in self.records.missing():
            place = int(np.searchsorted(self.positions, position))
            if place < len(self.positions) and self.positions[place] == position:
                yield place, reason

    def read(self, position: int) -> Record:
        """See `Records`."""
        return self.records.read(int(self.positions[position]))


def hold_back(records: Records, held: Held, training: bool) -> tuple[Records, str]:
    """The records for training or for validation, of records without a split, and in words how."""
    count = len(records)
    chosen = held_back(count, held, records.name)
    if not chosen or len(chosen) == count:
        return records, none_held(training)
    kept = np.zeros(count, bool)
    kept[list(chosen)] = True
    part = Part(records, np.flatnonzero(kept != training))
    return part, f"{len(chosen)} of {count} are held back, {held.way}"


def tell(owner: str, count: int, training: bool, how: str, left_out: Counter[str]) -> None:
    """One line: how many images, why these, and what else was there."""
    use = "training" if training else "validation"
    others = ", ".join(f"{number} {kind}" for kind, number in sorted((+left_out).items()))
    told = f"{owner}: {count} images for {use} ({how})"
    say(told + (f"; left out: {others}" if others else ""))
