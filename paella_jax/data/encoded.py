"""The source of a data set that `encode` made: arrays, not images (data/encoded_format.py)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import ConfigError, UserError
from paella_jax.data.encoded_format import (
    EMPTY,
    Manifest,
    Split,
    read_manifest,
    seal,
    shard_name,
    tree_digest,
    unpack,
)
from paella_jax.data.open_readers import OpenReaders
from paella_jax.files.disk import as_outage, patiently
from paella_jax.files.safetensors_file import map_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import parse_object, say

OPENING_THREADS = 16
# ArrayRecord's own advice for reading one record here and one there.
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# Fields of a data block that say how data is read, not what it is.
HOW_READ = ("encoded", "threads", "prefetch")


class EncodedDataError(UserError, RuntimeError, ValueError):
    """A shard is missing, damaged or of another data set; the message names it."""


class EncodedSource:
    """One split of an encoded data set; `len` counts samples, not their variants.

    Args:
      folder: the `--out` of `encode`.
      split: "train", or anything else for the validation samples, which also hold `image`; there
        are none where they were not encoded.

    Raises:
      ConfigError: no manifest, a damaged one, or one of another version.
      EncodedDataError: shards are missing, damaged or of another data set.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.manifest = Path(folder), read_manifest(folder)
        self.name = "train" if split == "train" else "validation"
        self.split = self.manifest.splits.get(self.name, Split(0, 1, 1, {}))
        self._find_shards()
        with ThreadPoolExecutor(OPENING_THREADS) as pool:
            list(pool.map(self._check, range(self.split.shards)))
        self._readers = OpenReaders(self._open)

    def _find_shards(self) -> None:
        files = [self._file(shard) for shard in range(self.split.shards)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise EncodedDataError(
                f"data.encoded {self.folder} lacks {len(missing)} of {len(files)} shards, as "
                f"{missing[0]}: the same encode command goes on where it stopped"
            )

    def _file(self, shard: int) -> Path:
        return self.folder / shard_name(self.name, self.split, shard)

    def _check(self, shard: int) -> None:
        open_shard(self._file(shard), self.manifest, self.name, shard).close()

    def _open(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(str(self._file(shard)), READ_OPTIONS)

    def __len__(self) -> int:
        return self.split.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The first variant of a sample: `caption` and the stored arrays."""
        return self.of_epoch(index, 0)

    def of_epoch(self, index: int, epoch: int) -> dict[str, Any]:
        """The sample as an epoch sees it: the variants take turns."""
        shard, record = self.split.place(int(index), int(epoch) % self.split.variants)
        stored = patiently(partial(self._read, shard, record))
        try:
            return unpack(stored, self.split.fields)
        except (ValueError, IndexError) as error:
            raise _damaged(self._file(shard), error) from error

    def _read(self, shard: int, record: int) -> bytes:
        try:
            return self._readers[shard].read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            file = self._file(shard)
            raise as_outage(error, file) or _damaged(file, error) from error


def open_shard(file: Path, manifest: Manifest, name: str, shard: int) -> Any:
    """A reader of one whole shard.

    Raises:
      EncodedDataError: it cannot be read, has another number of records, or another seal.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    wanted = seal(manifest, name, shard)
    try:
        reader = ArrayRecordReader(str(file), READ_OPTIONS)
        count = reader.num_records()
        if count != wanted["records"] + 1:
            raise ValueError(f"it has {count} records of {wanted['records'] + 1}")
        found = parse_object(reader.read([count - 1])[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise as_outage(error, file) or _damaged(file, error) from error
    if {key: found.get(key) for key in wanted} != wanted:
        raise EncodedDataError(
            f"{file} is a shard of another data set than {file.parent}'s manifest describes; "
            "remove it and run the same encode command again"
        )
    return reader


def _damaged(file: Path, error: Exception) -> EncodedDataError:
    reason = str(error).split(";")[0][:200]
    return EncodedDataError(
        f"{file} is damaged ({reason}): remove it and run the same encode command again"
    )


def read_empty(folder: str | Path, manifest: Manifest) -> dict[str, Any]:
    """What the encoders make of the empty text: {name: array of one sample}.

    Raises:
      EncodedDataError: the file is missing or damaged.
    """
    file = Path(folder) / EMPTY
    try:
        arrays = map_safetensors(file)
    except (OSError, ConversionError) as error:
        raise EncodedDataError(f"{file} cannot be read ({error}); encode the data again") from error
    if tree_digest(arrays) != manifest.empty:
        raise EncodedDataError(f"{file} is damaged; encode the data again")
    return arrays


def describe_data(config: ConfigDict) -> ConfigDict:
    """The config with what an encoded data set says of its images, so that the run records it.

    Where `data.encoded` is empty the config comes back as it is.

    Raises:
      ConfigError: no manifest there, or of images of another size.
    """
    folder = config.data.get("encoded", "") if "data" in config else ""
    if not folder:
        return config
    manifest = read_manifest(folder)
    config = config.copy_and_resolve_references()
    size = manifest.data["image_size"]
    if config.data.image_size != size:
        raise ConfigError(
            f"data.encoded {folder} holds images of {size} pixels, data.image_size is "
            f"{config.data.image_size}: encode them in that size, or set "
            f"--config.data.image_size={size}"
        )
    changes = []
    with config.unlocked():
        for name, value in manifest.data.items():
            value = tuple(value) if isinstance(value, list) else value
            if name in config.data and name not in HOW_READ and config.data[name] != value:
                changes.append(f"data.{name} {config.data[name]!r} -> {value!r}")
                config.data[name] = value
    say(f"data.encoded {folder}: {manifest.describe()}")
    if changes:
        say(f"data.encoded {folder} decides: {', '.join(changes)}")
    return config.lock()
