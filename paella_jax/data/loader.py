"""From a random-access source to batches: shuffled, endless, each process's own rows, resumable.

A batch is a function of the seed and the step alone. So nothing of it is saved with a checkpoint,
and a run resumed on another number of processes sees exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import absl.flags
import grain
import numpy as np

ENDLESS = 2**40  # positions of a stream that is not repeated


class Source(Protocol):
    """A random-access source of samples {"image": uint8 [H, W, 3], "caption": str}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@runtime_checkable
class RandomSource(Source, Protocol):
    """A source whose training samples also depend on chance (crops, flips)."""

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]: ...


@runtime_checkable
class BatchwiseSource(Source, Protocol):
    """A source whose training samples depend on the batch they are in (aspect-ratio buckets)."""

    def draw_at(self, position: int, batch_size: int, seed: int) -> dict[str, Any]: ...


@runtime_checkable
class EpochSource(Source, Protocol):
    """A source whose samples take turns in several variants, epoch by epoch."""

    def of_epoch(self, index: int, epoch: int) -> dict[str, Any]: ...


# One sample -> the arrays the method trains on.
Transform = Callable[[dict[str, Any]], dict[str, np.ndarray]]


def make_iterator(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rows: Sequence[int] | None = None,
    threads: int = 2,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """An endless iterator over some rows of every global batch.

    Args:
      source: where samples come from; a `BatchwiseSource` is asked for each position of the stream,
        a `RandomSource` is drawn from with a generator that depends on the seed and on the sample's
        position in the endless stream, so that each epoch differs and neither threads, processes
        nor a resumed run change a sample; an `EpochSource` is told the epoch.
      transform: applied to each sample.
      batch_size: samples per step over all processes.
      seed: order of the samples and their chance.
      start: the step whose batch comes first.
      rows: of the batch, those this process loads (`sharding.local_rows`); default all.
      threads: reading threads.
      prefetch: batches prepared ahead, at least one for each thread.

    Returns:
      An iterator of {name: array [rows, ...]}.
    """
    # grain reads absl flags, which a notebook, a test or our own command line never parsed.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
    if isinstance(source, BatchwiseSource):
        place = lambda position: source.draw_at(position, batch_size, seed)
        samples = grain.MapDataset.range(ENDLESS).map(place)
    elif isinstance(source, EpochSource):
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        samples = order.map_with_index(lambda p, i: source.of_epoch(i, p // len(source)))
    elif isinstance(source, RandomSource):
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        samples = order.random_map(source.draw, seed=seed)
    else:
        samples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    rows = range(batch_size) if rows is None else rows
    # Every process numbers the stream's positions alike and reads its own.
    position = lambda i: samples[i // len(rows) * batch_size + rows[i % len(rows)]]
    dataset = grain.MapDataset.range(start * len(rows), ENDLESS).map(position)
    batches = dataset.map(transform).batch(len(rows), drop_remainder=True)
    # grain reads no more batches at once than it may keep.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    return iter(batches.to_iter_dataset(options))


def image_transform(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keeps the image alone (tokenizer training)."""
    return {"image": sample["image"]}
