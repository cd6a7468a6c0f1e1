"""Tables of Hugging Face `datasets` as records: parquet files, and folders of `save_to_disk`.

Both need `pyarrow` alone. Parquet is read by groups of rows: a row costs its whole group unless the
group is still in memory, so that large shuffled sets are better written to ArrayRecord once. Arrow
files, as `save_to_disk` writes them, are mapped into memory and read row by row.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paella_jax.config import ConfigError
from paella_jax.data.fields import ALL, Fields, Wanted, choose_fields
from paella_jax.data.records import Record
from paella_jax.outside import listed, shortened

MOST_CACHED = 2**29  # bytes of groups of rows in memory
# A group of rows has at most so many bytes in memory, and so many for each of its file's: columns
# that say where a value comes again make many rows of few bytes.
LARGEST_GROUP, GROWTH = 2**29, 32
MOST_ROWS = 256  # at once


class TableRecords:
    """The rows of parquet or Arrow files, in the files' order.

    An image is bytes, or `bytes` and `path` as `datasets.Image` stores them; captions are texts or
    lists of them.

    Args:
      owner: what they are, in messages.
      files: all to be read.
      wanted: which of their fields to read.

    Raises:
      ConfigError: without pyarrow.
      ValueError: a damaged file, no rows, or no such columns.
    """

    def __init__(
        self,
        owner: str,
        files: Sequence[Path],
        wanted: Wanted = ALL,
    ) -> None:
        _pyarrow()  # or it would be missed in every file
        self.owner, self.files = owner, list(files)
        self.groups: list[tuple[int, int]] = []  # of rows: the file, and the group in it
        self.ends: list[int] = []
        self._forget()
        names: list[str] = []
        for number, file in enumerate(self.files):
            with _errors_name(file):
                sizes, columns = _describe(file)
            if names and columns != names:
                raise ValueError(f"{file} has the columns {columns}, {self.files[0]} {names}")
            names = columns
            for group, size in enumerate(sizes):
                self.groups.append((number, group))
                self.ends.append((self.ends[-1] if self.ends else 0) + size)
        if not len(self):
            raise ValueError(
                f"{owner}: no rows in {len(files)} files ({listed(f.name for f in files)})"
            )
        self.fields: Fields = choose_fields(owner, names, wanted)

    def _forget(self) -> None:
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _place(self, position: int) -> tuple[int, int]:
        """The group of rows, and the row in it."""
        group = bisect_right(self.ends, position)
        return group, position - (self.ends[group - 1] if group else 0)

    def name(self, position: int) -> str:
        """The file's name and the row's number in its group."""
        group, row = self._place(position)
        file, inner = self.groups[group]
        return f"{self.files[file].name}[group {inner}, row {row}]"

    def missing(self) -> Iterator[tuple[int, str]]:
        """See `records.Records`; nothing is known without reading."""
        return iter(())

    def read(self, position: int) -> Record:
        """See `records.Records`."""
        group, row = self._place(position)
        with _errors_name(self._file_of(group)):
            cut = self._group(group).slice(row, 1)
            cut.validate(full=True)  # a damaged file's offsets point anywhere
            record: Mapping[str, Any] = cut.to_pylist()[0]
        captions = self.fields.captions_of(record)
        image = self.fields.image_of(record, self.name(position))
        return Record(image, captions, self.fields.group_of(record))

    def _group(self, number: int) -> Any:
        """A group of rows as a table, of those read last or read now."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        file, inner = self.groups[number]
        table = _read(self.files[file], inner, self.fields.names)
        with self._lock:
            self._cache[number] = table
            while len(self._cache) > 1 and self._cached_bytes() > MOST_CACHED:
                self._cache.popitem(last=False)
        return table

    def _cached_bytes(self) -> int:
        return sum(0 if _is_arrow(self._file_of(n)) else t.nbytes for n, t in self._cache.items())

    def _file_of(self, group: int) -> Path:
        return self.files[self.groups[group][0]]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


@contextmanager
def _errors_name(file: Path) -> Iterator[None]:
    """Turns whatever pyarrow raises at a damaged file into a ValueError with the file's name."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = shortened(str(error).strip(), 300) or type(error).__name__
        raise ValueError(f"{file} cannot be read: {reason}") from error


def _is_arrow(file: Path) -> bool:
    return file.suffix == ".arrow"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("data.source=parquet needs: pip install 'paella_jax[data]'") from error
    return pyarrow


def _describe(file: Path) -> tuple[list[int], list[str]]:
    """The rows of each of a file's groups, and the names of its columns, with inner ones."""
    arrow = _pyarrow()
    if _is_arrow(file):
        table = _mapped(file)
        return [table.num_rows], list(_places(table.schema))
    with arrow.parquet.ParquetFile(file) as opened:
        meta = opened.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return sizes, list(_places(opened.schema_arrow))


def _places(fields: Any) -> dict[str, tuple[str, ...]]:
    """Of columns and of what is in them, by their names with slashes: the names on the way there.

    A column's own name may have slashes, too.
    """
    found: dict[str, tuple[str, ...]] = {}
    for field in fields:
        inner = _places(field.type) if _pyarrow().types.is_struct(field.type) else {}
        found |= {f"{field.name}/{name}": (field.name, *place) for name, place in inner.items()}
        found[field.name] = (field.name,)
    return found


def _read(file: Path, group: int, names: list[str]) -> Any:
    if _is_arrow(file):
        table = _mapped(file)
        places = _places(table.schema)
        return table.select(sorted({places[name][0] for name in names}))
    with _pyarrow().parquet.ParquetFile(file) as opened:
        places = _places(opened.schema_arrow)
        columns = sorted({".".join(places[name]) for name in names})
        return _read_in_slices(opened, group, columns, LARGEST_GROUP + GROWTH * file.stat().st_size)


def _read_in_slices(opened: Any, group: int, columns: list[str], most: int) -> Any:
    """A group of rows of at most so many bytes, as few bytes in a file may stand for many rows.

    A slice has as many rows as fit into memory, should each hold all that the group says it has.
    """
    size = max(opened.metadata.row_group(group).total_byte_size, 1)
    rows = min(max(LARGEST_GROUP // size, 1), MOST_ROWS)
    slices, total = [], 0
    for part in opened.iter_batches(rows, [group], columns, use_threads=False):
        slices.append(part)
        total += part.nbytes
        if total > most:
            raise ValueError(
                f"its group of rows {group} becomes more than {most} bytes, far more than the file "
                "has; write it anew in smaller groups of rows"
            )
    return _pyarrow().Table.from_batches(slices)


def _mapped(file: Path) -> Any:
    """An Arrow file, in the stream's or the file's format, whose bytes stay on the disk."""
    arrow = _pyarrow()
    source = arrow.memory_map(str(file))
    try:
        return arrow.ipc.open_stream(source).read_all()
    except arrow.ArrowInvalid:
        return arrow.ipc.open_file(source).read_all()
