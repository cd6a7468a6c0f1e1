"""Tar shards in webdataset's layout as records (shard_index.py)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.data.captions import CAPTION_COLUMNS
from paella_jax.data.fields import Wanted, find, group_of, texts_of
from paella_jax.data.records import Record
from paella_jax.data.shard_index import ShardIndex, index_of
from paella_jax.files.disk import is_outage
from paella_jax.files.ranges import FileRanges
from paella_jax.files.tar import TarError
from paella_jax.images.decode import Encoded
from paella_jax.outside import listed, parse_object, say

TOLD = 5  # damaged shards
EVERY = 10.0  # seconds between reports, where an index is made first


class ShardRecords:
    """The samples of tar shards, in the shards' order.

    A caption is a sample's text file or, where it has none or a field is wanted, in its json.

    Args:
      owner: what they are, in messages.
      shards: the archives.
      wanted: which field of their json to read, and how.
      left_out: gets the number of what is not used, by kind.

    Raises:
      ValueError: damaged or unreadable shards, or no images in them.
    """

    def __init__(
        self,
        owner: str,
        shards: Sequence[Path],
        wanted: Wanted,
        left_out: Counter[str],
    ) -> None:
        self.owner, self.wanted = owner, wanted
        self.indices = _indices(owner, shards)
        for index in self.indices:
            left_out.update(index.left_out)
        self.starts = np.cumsum([0, *(len(index.rows) for index in self.indices)])
        if not len(self):
            raise ValueError(
                f"{owner}: no images in {len(shards)} shards ({listed(f.name for f in shards)})"
            )
        self.files = FileRanges(shards)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _place(self, position: int) -> tuple[int, int]:
        """The shard, and the row in it."""
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        return shard, position - int(self.starts[shard])

    def name(self, position: int) -> str:
        """The shard's file name and the sample's name."""
        shard, row = self._place(position)
        return f"{self.files.files[shard].name}:{self.indices[shard].name(row)}"

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `records.Records`."""
        for start, index in zip(self.starts, self.indices, strict=False):
            rows = index.rows
            empty = rows["image_size"] == 0
            silent = np.zeros(len(rows), bool)
            if self.wanted.captions:
                silent = rows["json_offset"] == 0
                if not self.wanted.caption:
                    silent &= rows["text_size"] == 0
            for row in np.flatnonzero(empty | silent):
                yield int(start + row), "no caption" if silent[row] else "its image is empty"

    def read(self, position: int) -> Record:
        """See `records.Records`."""
        shard, row = self._place(position)
        values = self.indices[shard].rows[row]

        def load(part: str) -> bytes:
            offset, size = int(values[f"{part}_offset"]), int(values[f"{part}_size"])
            return self.files.read(shard, offset, size)

        texts = [""]
        if self.wanted.captions:
            if values["text_size"] and not self.wanted.caption:
                texts = texts_of(load("text"), self.wanted.lines)
            else:
                texts = self._of_json(load("json")) if values["json_offset"] else []
        if not texts:
            raise ValueError("no caption: its text is empty")
        group = ""
        if self.wanted.group and values["json_offset"]:
            group = group_of(find(_json(load("json")), self.wanted.group))
        return Record(Encoded(self.name(position), load("image")), texts, group)

    def _of_json(self, text: bytes) -> list[str]:
        fields = _json(text)
        wanted = [self.wanted.caption] if self.wanted.caption else CAPTION_COLUMNS
        for field in wanted:
            texts = texts_of(find(fields, field), self.wanted.lines)
            if texts:
                return texts
        raise ValueError(f"no caption: none in {', '.join(wanted)} of {listed(fields)}")


def _json(text: bytes) -> dict[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise ValueError(f"its json cannot be read: {error}") from error


def _indices(owner: str, shards: Sequence[Path]) -> list[ShardIndex]:
    indices: dict[int, ShardIndex] = {}
    damaged = []
    told = time.monotonic()
    for done, number in enumerate(_order(len(shards))):
        if time.monotonic() > told + EVERY:
            told = time.monotonic()
            say(f"{owner}: {done} of {len(shards)} shards are indexed")
        try:
            indices[number] = index_of(shards[number])
        except (TarError, OSError) as error:
            if is_outage(error):
                raise
            damaged.append(str(error))
    if damaged:
        more = f" and {len(damaged) - TOLD} more" if len(damaged) > TOLD else ""
        raise ValueError(
            f"{owner}: {len(damaged)} of {len(shards)} shards cannot be used: "
            f"{'; '.join(damaged[:TOLD])}{more}; copy them again or leave them out"
        )
    return [indices[number] for number in range(len(shards))]


def _order(count: int) -> list[int]:
    """Shards in the order to look at: each process of a run begins elsewhere.

    So they share the work: when one comes to the others' shards, their indices are kept.
    """
    import jax

    if not jax.distributed.is_initialized():
        return list(range(count))
    first = count * jax.process_index() // jax.process_count()
    return [*range(first, count), *range(first)]
