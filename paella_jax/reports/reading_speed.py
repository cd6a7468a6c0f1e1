"""How fast a run's data is read: time and memory of its start, images per second of a core."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.data.build import make_source
from paella_jax.data.loader import RandomSource, image_transform, make_iterator

WAIT = 60.0  # seconds for a batch that is being read
PHOTOS = 16  # made-up ones
OCTAVES = 6
QUALITY = 90


def reading_cost(config: ConfigDict, seconds: float) -> dict[str, Any]:
    """Reads a config's training images for some seconds, alone and by the loader's threads.

    Images per second of CPU time say what a core reads, also while other work shares the machine.
    A file is read for the first time in the first part, and from memory where it comes again.
    Nothing is read any more when it returns.

    Args:
      config: its data block, batch size and seed count.
      seconds: of CPU time of each part.
    """
    memory, began, cpu = _megabytes(), time.perf_counter(), time.process_time()
    source = make_source(config.data, "train", config.seed)
    report: dict[str, Any] = {
        "source": config.data.source,
        "images": len(source),
        "start_seconds": round(time.perf_counter() - began, 2),
        "start_cpu_seconds": round(time.process_time() - cpu, 2),
        "start_megabytes": round(_megabytes() - memory, 1),
    }
    order = np.random.default_rng(config.seed)
    draw = source.draw if isinstance(source, RandomSource) else lambda i, _: source[i]
    alone = _rate(lambda: draw(int(order.integers(len(source))), order), 1, seconds)
    others = set(threading.enumerate())
    batches = make_iterator(
        source,
        image_transform,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    next(batches)  # the threads start
    together = _rate(lambda: next(batches), config.batch_size, seconds)
    batches.close()  # its threads would read on; each ends with the batch it is at
    for thread in set(threading.enumerate()) - others:
        thread.join(WAIT)
    name = f"{config.data.threads} threads"
    return report | {"one thread": alone, name: together, "megabytes": round(_megabytes(), 1)}


def _rate(read: Any, images: int, seconds: float) -> dict[str, float]:
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.process_time() - cpu < seconds:
        read()
        count += images
    used, passed = time.process_time() - cpu, time.perf_counter() - began
    return {
        "images_per_cpu_second": round(count / used, 1),
        "images_per_second": round(count / passed, 1),
    }


def _megabytes() -> float:
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_photos(folder: Path, width: int, height: int) -> None:
    """Made-up photographs as JPEGs, with captions: noise that is stronger where it is coarser."""
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        total = np.zeros((height, width, 3), np.float32)
        for octave in range(OCTAVES):
            side = 2 ** (octave + 2)
            noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            layer = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
            total += (layer - 127.5) / 1.5**octave
        total += rng.normal(0, 3, total.shape)  # a camera's own
        image = Image.fromarray(np.clip(total + 127.5, 0, 255).astype(np.uint8))
        image.save(folder / f"{number:04d}.jpg", quality=QUALITY)
        (folder / f"{number:04d}.txt").write_text(f"a photo of nothing, number {number}")
