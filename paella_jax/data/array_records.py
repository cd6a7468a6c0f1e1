"""ArrayRecord files as records: reading, and a writer for any source's records.

A record is a serialized `tf.train.Example` (files/examples.py) with the encoded image in `image`
and one or more texts in `caption`, or fields of other names that the config gives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError
from paella_jax.data.fields import ALL, Fields, Wanted, choose_fields
from paella_jax.data.open_readers import OpenReaders
from paella_jax.data.records import Record
from paella_jax.files.atomic import atomic_path
from paella_jax.files.disk import as_outage
from paella_jax.files.examples import decode_example, encode_example
from paella_jax.outside import listed

# One record in a group: else reading one decompresses its neighbours. Images are compressed.
WRITTEN_AS = "group_size:1,uncompressed"
READ_AS = "readahead_buffer_size:0"
BUFFER = 2**15  # bytes


class ArrayRecords:
    """The records of ArrayRecord files, in the files' order.

    Args:
      owner: what they are, in messages.
      files: all to be read.
      wanted: which of their fields to read.

    Raises:
      ValueError: a file that is none or is damaged, no records, or none with such fields.
    """

    def __init__(
        self,
        owner: str,
        files: Sequence[Path],
        wanted: Wanted = ALL,
    ) -> None:
        self.owner, self.files = owner, [str(file) for file in files]
        self.ends: list[int] = []
        for file in self.files:
            self.ends.append((self.ends[-1] if self.ends else 0) + _count(file))
        self._forget()
        if not len(self):
            raise ValueError(
                f"{owner}: no records in {len(files)} files ({listed(f.name for f in files)})"
            )
        try:
            first = decode_example(self._bytes(0))
        except (ValueError, OSError) as error:
            raise ValueError(f"{owner}: the first record of {self.files[0]}: {error}") from error
        self.fields: Fields = choose_fields(owner, first, wanted)

    def _forget(self) -> None:
        self._readers = OpenReaders(lambda file: _open(self.files[file]))

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, position: int) -> tuple[int, int]:
        """The file, and the record in it."""
        file = bisect_right(self.ends, position)
        return file, position - (self.ends[file - 1] if file else 0)

    def name(self, position: int) -> str:
        """The file's name and the record's number in it."""
        file, record = self._place(position)
        return f"{Path(self.files[file]).name}[{record}]"

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `records.Records`; nothing is known without reading."""
        return iter(())

    def read(self, position: int) -> Record:
        """See `records.Records`."""
        record = decode_example(self._bytes(position))
        captions = self.fields.captions_of(record)
        image = self.fields.image_of(record, self.name(position))
        return Record(image, captions, self.fields.group_of(record))

    def _bytes(self, position: int) -> bytes:
        file, record = self._place(position)
        try:
            return self._readers[file].read([record])[0]
        except (RuntimeError, IndexError) as error:
            raise as_outage(error, self.files[file]) or OSError(str(error)) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_readers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _open(file: str) -> Any:
    return _module().ArrayRecordReader(file, options=READ_AS, file_reader_buffer_size=BUFFER)


def _module() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:  # there is none for Windows
        raise ConfigError("ArrayRecord files need: pip install array_record") from error
    return array_record_module


def _count(file: str) -> int:
    """How many records a file has. Raises ValueError where it is damaged."""
    _module()
    try:
        reader = _open(file)
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).split("; ")[0] or "its end is missing"
        raise ValueError(f"{file} is no ArrayRecord file, or a damaged one: {reason}") from error
    return count


def write_array_record(file: str | Path, records: Iterable[Record]) -> int:
    """Writes captioned images to an ArrayRecord file, whole or not at all; returns how many.

    Args:
      file: as in "train-00000.array_record".
      records: encoded images, as bytes or as files, and their captions; any source's are fine:
        `(records.read(i) for i in range(len(records)))`. A record's group becomes `group`.

    Raises:
      OSError: an image cannot be read, or the file cannot be written.
    """
    count = 0
    with atomic_path(Path(file)) as part:
        writer = _module().ArrayRecordWriter(str(part), WRITTEN_AS)
        for image, captions, group in records:
            with image.open("rb") as opened:
                encoded = opened.read()
            said = {"caption": captions} | ({"group": group} if group else {})
            writer.write(encode_example({"image": encoded, **said}))
            count += 1
        writer.close()
    return count
