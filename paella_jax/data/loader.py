"""From a random-access source to batches: shuffled, endless, sharded by process, resumable.

The whole pipeline is a function of the step: its state is one number per process, which is saved
with every checkpoint, so a resumed run sees exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
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


# One sample -> the arrays the method trains on.
Transform = Callable[[dict[str, Any]], dict[str, np.ndarray]]


def make_iterator(
    source: Source,
    transform: Transform,
    *,
    global_batch_size: int,
    seed: int,
    threads: int = 2,
    prefetch: int = 8,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over this process's part of every global batch.

    Args:
      source: where samples come from; a `BatchwiseSource` is asked for each position of the stream,
        a `RandomSource` is drawn from with a generator that depends on the seed and on the sample's
        position in the endless stream, so that each epoch differs and neither threads, processes
        nor a resumed run change a sample.
      transform: applied to each sample.
      global_batch_size: samples per step over all processes; divisible by `process_count`.
      seed: order of the samples and their chance.
      threads: reading threads.
      prefetch: batches prepared ahead.
      process_index: this process.
      process_count: all processes.

    Returns:
      An iterator of {name: array [local_batch, ...]} with `get_state` and `set_state`.
    """
    if global_batch_size % process_count:
        raise ValueError(
            f"batch_size {global_batch_size} must be divisible by the {process_count} processes"
        )
    # grain reads absl flags, which a notebook, a test or our own command line never parsed.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()
    local = global_batch_size // process_count
    if isinstance(source, BatchwiseSource):
        place = lambda position: source.draw_at(position, global_batch_size, seed)
        samples = grain.MapDataset.range(ENDLESS).map(place)
    elif isinstance(source, RandomSource):
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        # Before the slice: every process must number the stream's positions alike.
        samples = order.random_map(source.draw, seed=seed)
    else:
        samples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = (
        samples.slice(slice(process_index, None, process_count))
        .map(transform)
        .batch(local, drop_remainder=True)
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def image_transform(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Keeps the image alone (tokenizer training)."""
    return {"image": sample["image"]}
