"""What a comparison keeps of its images: the same captions and seeds of every cell, and steps.

The first seed of a cell has a file `measured/NAME.npz` beside its row. `grids.py` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from paella_jax.comparison.rows import Row
from paella_jax.files.arrays import read_npz
from paella_jax.files.atomic import atomic_path
from paella_jax.images.write import to_uint8
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.sampling.token_sampler import PAIRS

SHOWN = 8  # captions of each split
# The folder of rows and images. Where there is a `cells` too, its rows are of before tuning had
# held-out captions.
MEASURED = "measured"


class Drawn(NamedTuple):
    """Images of one cell at the main number of steps.

    Attributes:
      cell: its name.
      splits: "seen" or "heldout" of each caption.
      captions: all different.
      images: uint8 [captions, H, W, 3], with the seeds that the cell was measured with.
      truth: uint8, of the same shape: what the captions ask for.
      exact: bool [captions], whether an image has everything right.
      steps: uint8 [steps, H, W, 3], the first caption's image after every step.
    """

    cell: str
    splits: list[str]
    captions: list[str]
    images: np.ndarray
    truth: np.ndarray
    exact: np.ndarray
    steps: np.ndarray


class Truth(Protocol):
    """What captions ask for, and whether an image shows it (comparison/subject.py)."""

    def true_images(self, captions: Sequence[str]) -> np.ndarray: ...

    def mark(self, images: np.ndarray, captions: Sequence[str]) -> Any: ...


def keep_drawn(
    file: Path,
    pipeline: TokenPipeline,
    row: Row,
    captions: Mapping[str, Sequence[str]],
    subject: Truth,
    num_steps: int,
) -> None:
    """Draws the first different captions of each split again, with their steps, and writes them.

    Args:
      file: .npz, which appears whole or not at all.
      pipeline: with the cell's weights.
      row: of the cell, for its name and its sampler's settings.
      captions: split -> captions that were measured; a caption's place is its seed.
      subject: has the captions' true images, and marks what is drawn.
      num_steps: of sampling.
    """
    chosen = {split: _different(own) for split, own in captions.items()}
    splits = [split for split, own in chosen.items() for _ in own]
    texts = [caption for own in chosen.values() for caption in own]
    options: dict[str, Any] = {name: tuple(row[name]) for name in PAIRS if name in row}
    options |= {"num_steps": num_steps, "sampler": row["sampler"], "batch_size": len(texts)}
    seeds = [seed for own in chosen.values() for seed in own.values()]
    found = pipeline.generate(texts, seed=seeds, trace=True, **options)
    assert found.trace is not None
    write_drawn(
        file,
        Drawn(
            row["cell"],
            splits,
            texts,
            to_uint8(found.images),
            subject.true_images(texts),
            subject.mark(found.images, texts).exact,
            to_uint8(pipeline.decode(found.trace[:, 0])),
        ),
    )


def _different(captions: Sequence[str]) -> dict[str, int]:
    """The first few captions that differ, and their places."""
    places: dict[str, int] = {}
    for place, caption in enumerate(captions):
        places.setdefault(caption, place)
    return dict(list(places.items())[:SHOWN])


def write_drawn(file: Path, drawn: Drawn) -> None:
    """Writes a cell's images whole or not at all."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in drawn._asdict().items()}
    with atomic_path(file) as part, part.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_drawn(out: Path, cells: Sequence[str]) -> dict[str, Drawn]:
    """Images of a comparison's cells, in their order, as far as they were kept.

    Cells whose captions differ from the first one's are left out: they cannot be set side by side.

    Raises:
      ValueError: a damaged file; the message says how to draw it again.
    """
    found = [_read(file) for file in sorted((out / MEASURED).glob("*.npz"))]
    by_cell = {one.cell: one for one in reversed(found)}  # the first of several seeds
    ordered = [by_cell[cell] for cell in cells if cell in by_cell]
    return {one.cell: one for one in ordered if one.captions == ordered[0].captions}


def _read(file: Path) -> Drawn:
    try:
        stored = read_npz(file)
        arrays: dict[str, Any] = {name: stored[name] for name in Drawn._fields}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete it and {file.with_suffix('.json').name} beside "
            "it and run the same command, which measures that cell again"
        ) from error
    texts = {name: arrays.pop(name).tolist() for name in ("cell", "splits", "captions")}
    return Drawn(**texts, **arrays)
