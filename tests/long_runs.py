"""Whether long runs stay as they are: memory, threads and open files, counted as they go on.

`python tests/long_runs.py [STEPS] [CALLS]` trains a tiny run for STEPS updates (default 20000) with
saves and previews, and calls a pipeline CALLS times (default 1000) with images of many sizes,
numbers and steps. Prints what a process holds along the way; exit code 1 if it keeps growing.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import small

import paella_jax
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training import loop
from paella_jax.training.metrics import MetricWriter

MIB = 2**20
SIDES = (16, 24, 32)  # pixels: with numbers of images, more programs than are kept
ANY_SIZE = {"model__patterns": "('CT',)", "model__widths": "(16,)", "model__cond_width": 16,
            "model__token_width": 8, "text__width": 16, "text__hidden_dim": 16}  # fmt: skip
GROWTH = 0.05  # of memory, from the middle to the end, that still counts as none
SPARE = 3  # threads or files: pools grow up to their size
FLOOR = 24.0  # MiB: what an allocator may keep or not


class Held(NamedTuple):
    """What a process holds at some point."""

    at: int
    memory: float  # MiB
    threads: int
    files: int


def held(at: int) -> Held:
    """Now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / MIB
    return Held(at, memory, threading.active_count(), len(os.listdir("/proc/self/fd")))


def grown(seen: Sequence[Held]) -> str:
    """What kept growing in the second half of a run; empty if nothing did."""
    begin, half = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    first, last = half[0], half[-1]
    wrong = []
    if last.memory > first.memory * (1 + GROWTH) + FLOOR:
        wrong.append(f"memory from {first.memory:.0f} to {last.memory:.0f} MiB")
    for name in ("threads", "files"):
        # The fewest: a save that is being written has some of its own.
        before, after = (min(getattr(one, name) for one in part) for part in (begin, half))
        if after > before + SPARE:
            wrong.append(f"{name} from {before} to {after}")
    return ", ".join(wrong)


def train_long(folder: Path, steps: int, looks: int = 10) -> list[Held]:
    """What training holds, seen from its lines of metrics."""
    every = max(steps // looks, 1)
    config = small.small_paella(**small.TINY_TRANSFORMER | {
        "num_steps": steps, "log__every": max(every // 20, 1), "log__preview_every": every,
        "checkpoint__every": max(every // 2, 1), "sampler__num_steps": 2, "data__size": 64,
        "batch_size": 2,
    })  # fmt: skip
    prepare_workdir(folder, config)
    small.carry_random_tokenizer(folder)
    seen, write = [], MetricWriter.write

    def look(writer, step, values):
        write(writer, step, values)
        if step % every == 0 and "loss" in values:
            seen.append(held(step))

    MetricWriter.write = look
    try:
        loop.train(config, folder, build_method(config, folder))
    finally:
        MetricWriter.write = write
    return seen


def call_long(folder: Path, calls: int, looks: int = 10) -> list[Held]:
    """What a pipeline's process holds between calls."""
    config = small.small_paella(**ANY_SIZE)
    pipe = paella_jax.load(small.untrained(folder, config))
    chance, every, seen = np.random.default_rng(0), max(calls // looks, 1), []
    for call in range(1, calls + 1):
        height, width = (int(chance.choice(SIDES)) for _ in range(2))
        count, steps = int(chance.integers(1, 3)), int(chance.integers(1, 4))
        scale = float(chance.choice([1.0, 3.0]))
        images = pipe(
            f"image {call}", height=height, width=width, seed=call, num_images_per_prompt=count,
            num_steps=steps, guidance_scale=scale,
        )  # fmt: skip
        assert len(images) == count and images[0].size == (width, height)
        if call % every == 0:
            seen.append(held(call))
    return seen


def main() -> int:
    """Both, with what was held along the way."""
    given = sys.argv[1:3]
    steps, calls = (int(word) for word in (*given, *("20000", "1000")[len(given) :]))
    jax.config.update("jax_platforms", "cpu")
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        for name, run, count in (("updates", train_long, steps), ("calls", call_long, calls)):
            if not count:
                continue
            seen = run(Path(place) / name, count)
            print(f"{name:>9} {'memory':>8} {'threads':>8} {'files':>6}")
            for one in seen:
                print(f"{one.at:>9} {one.memory:>4.0f} MiB {one.threads:>8} {one.files:>6}")
            if growth := grown(seen):
                wrong.append(f"{name}: {growth}")
    print("; ".join(wrong) or "nothing grows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
