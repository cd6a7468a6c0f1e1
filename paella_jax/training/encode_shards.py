"""Frozen networks run once over a data set, and what they give stored in shards.

Shards are independent of one another: each appears whole or not at all, and depends neither on
which process writes it nor on how often the work was stopped. So a killed call is started again,
and several processes share the shards without a word.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import absl.flags
import grain
import jax
import numpy as np
from jax.sharding import Mesh

from paella_jax.config import WriteError
from paella_jax.data.encoded import open_shard
from paella_jax.data.encoded_format import Manifest, Split, Stored, pack, seal, shard_name
from paella_jax.data.loader import RandomSource, Source, Transform
from paella_jax.files.atomic import atomic_path
from paella_jax.training.method import Encoding, Method
from paella_jax.training.metrics import report
from paella_jax.training.placing import batch_sharding
from paella_jax.training.sharding import MeshError, frozen_shardings, replicated
from paella_jax.typing import Tree

# One record here and one there are read: no groups, and a light compression.
WRITE_OPTIONS = "group_size:1,zstd:1"
IMAGE = "image"

Sample = dict[str, Any]


def sample_of(source: Source, seed: int, index: int, variant: int) -> Sample:
    """A variant of a sample: its own crop, flip and caption, where the source has chance."""
    if isinstance(source, RandomSource):
        return source.draw(index, np.random.default_rng((seed, variant, index)))
    return source[index]


def stored_fields(method: Method, encoding: Encoding, text_dtype: str) -> dict[str, Stored]:
    """What will be stored of every sample; nothing is computed.

    Args:
      method: its first sample tells the shapes.
      encoding: of the method.
      text_dtype: of the text states; empty for the encoder's own.
    """
    batch = {n: np.asarray(x)[None] for n, x in method.transform(method.source[0]).items()}
    shapes = jax.eval_shape(encoding.arrays, method.frozen, batch)
    fields = {}
    for name, x in shapes.items():
        dtype = used = np.dtype(x.dtype)
        if name in encoding.largest:
            dtype = np.min_scalar_type(encoding.largest[name])
        stored = text_dtype if name == "text_states" and text_dtype else dtype.name
        fields[name] = Stored(stored, tuple(x.shape[1:]), used.name)
    return fields


@dataclass
class Encoder:
    """Runs an encoding over batches of one size, on all devices of this process.

    Large networks are spread over them, as in training, where their number divides them.

    Attributes:
      encoding: what to compute.
      frozen: the method's, of which those that it uses are kept.
      batch_size: samples at once; rounded up to a multiple of the devices.
    """

    encoding: Encoding
    frozen: Tree
    batch_size: int
    _run: Callable[..., Any] = field(init=False, repr=False)
    _put: Callable[..., Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        devices = jax.local_devices()
        self.batch_size = -(-self.batch_size // len(devices)) * len(devices)
        mesh = Mesh(np.array(devices).reshape(1, -1, 1), ("data", "fsdp", "tensor"))
        self._put = partial(jax.device_put, device=batch_sharding(mesh))
        used = {name: self.frozen[name] for name in self.encoding.networks}
        shardings = {name: _sharding(name, network, mesh) for name, network in used.items()}
        self.frozen = jax.device_put(used, shardings)
        self._run = jax.jit(self.encoding.arrays)

    def start(self, samples: list[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        """Begins a batch of transformed samples; it is filled up to `batch_size`."""
        filled = samples + [samples[-1]] * (self.batch_size - len(samples))
        batch = {name: np.stack([sample[name] for sample in filled]) for name in samples[0]}
        return self._run(self.frozen, self._put(batch))

    def empty(self, method: Method) -> dict[str, np.ndarray]:
        """What the encoders make of the empty text: {name: array of one sample}."""
        sample = method.transform(dict(method.source[0]) | {"caption": ""})
        arrays = jax.device_get(self.start([sample]))
        return {n: arrays[n][0] for n in ("text_states", "text_pooled") if n in arrays}


def _sharding(name: str, network: Tree, mesh: Mesh) -> Tree:
    """How a network is spread: whole where it does not divide, as nobody chose this mesh."""
    try:
        return frozen_shardings({name: network}, mesh)[name]
    except MeshError:
        report(f"{name} does not divide by {mesh.size} devices: each of them holds it whole")
        return replicated(mesh)


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of one split.

    Attributes:
      folder: of the data set.
      manifest: what it is.
      name: of the split.
      source: its samples.
      transform: of the method.
      encoder: what runs the networks.
      threads: that read samples.
    """

    folder: Path
    manifest: Manifest
    name: str
    source: Source
    transform: Transform
    encoder: Encoder
    threads: int

    @property
    def split(self) -> Split:
        """What is to be written."""
        return self.manifest.splits[self.name]

    def write(self, shard: int) -> str:
        """Writes a shard where it is not there yet; returns a line about it.

        Raises:
          EncodedDataError: a file in its place is damaged or of another data set.
        """
        file = self.folder / shard_name(self.name, self.split, shard)
        if file.exists():
            open_shard(file, self.manifest, self.name, shard).close()
            return f"{file.name}: is there"
        for part in self.folder.glob(f"{file.name}.*.part"):
            part.unlink(missing_ok=True)  # of a call that was killed
        began, count = time.perf_counter(), len(self.split.range_of(shard))
        with atomic_path(file) as part:
            write_records(part, self._records(shard), seal(self.manifest, self.name, shard))
        rate = count / (time.perf_counter() - began)
        return f"{file.name}: {count} samples, {rate:.0f} per second"

    def _records(self, shard: int) -> Iterator[bytes]:
        """The shard's records in order; a batch is computed while the one before is packed."""
        before: tuple[list[Sample], dict[str, jax.Array]] | None = None
        for samples in self._batches(self.split.range_of(shard)):
            arrays = self.encoder.start([self.transform(sample) for sample in samples])
            if before is not None:
                yield from self._packed(*before)
            before = samples, arrays
        if before is not None:
            yield from self._packed(*before)

    def _batches(self, records: range) -> Iterator[list[Sample]]:
        if not absl.flags.FLAGS.is_parsed():  # as in data/loader.py
            absl.flags.FLAGS.mark_as_parsed()
        size, count = self.encoder.batch_size, self.split.count
        load = lambda r: sample_of(self.source, self.manifest.seed, r % count, r // count)
        batch = lambda i: [load(r) for r in records[i * size : (i + 1) * size]]
        batches = grain.MapDataset.range(-(-len(records) // size)).map(batch)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads)
        return iter(batches.to_iter_dataset(options))

    def _packed(self, samples: list[Sample], arrays: dict[str, jax.Array]) -> Iterator[bytes]:
        fields, values = self.split.fields, jax.device_get(arrays)
        for row, sample in enumerate(samples):
            stored = {n: values[n][row] if n in values else sample[n] for n in fields}
            yield pack(stored, sample["caption"], fields)


def write_records(file: Path, records: Iterator[bytes], sealed: Mapping[str, Any]) -> None:
    """Writes records as ArrayRecord, and behind them their seal with a digest of them all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with _told(file):
        writer, total = ArrayRecordWriter(str(file), WRITE_OPTIONS), hashlib.sha256()
    try:
        for record in records:
            with _told(file):
                writer.write(record)
            total.update(record)
        with _told(file):
            writer.write(json.dumps({**sealed, "sha256": total.hexdigest()}).encode())
    finally:
        with _told(file):
            writer.close()


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Says in a line that a shard cannot be written, as ArrayRecord does in several."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split(";")[0].split("\n")[0]
        raise WriteError(
            f"{file} cannot be written: {reason}; see to its disk, then run the same command "
            "again: it goes on from the shards that are there"
        ) from error
