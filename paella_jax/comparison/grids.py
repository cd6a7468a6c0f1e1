"""Draws what the cells of a comparison drew: the same prompts side by side, and strips of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paella_jax.comparison.pictures import Drawn
from paella_jax.comparison.rows import Row
from paella_jax.images.write import save_table

SPLITS = {"seen": "SEEN", "heldout": "HELD-OUT"}


def draw_samples(file: Path, drawn: Mapping[str, Drawn], rows: Sequence[Row]) -> str:
    """Writes a row per prompt and a column per cell, behind the true images.

    Args:
      file: PNG.
      drawn: by cell, with the same captions each; at least one.
      rows: of the comparison.

    Returns:
      Its caption.
    """
    cells = list(drawn.values())
    columns = [cells[0].truth, *(one.images for one in cells)]
    marks = [[None, *(bool(one.exact[i]) for one in cells)] for i in range(len(cells[0].captions))]
    save_table(
        file,
        np.stack(columns, axis=1).astype(np.float32) / 255,
        ["true image", *(titles(rows)[name] for name in drawn)],
        [f"{SPLITS[s]}\n{c}" for s, c in zip(cells[0].splits, cells[0].captions, strict=True)],
        marks,
    )
    return (
        f"The same {len(cells[0].captions)} prompts with the same seeds in every cell, each cell "
        "with its own tuned settings, its first training seed. A tick: everything right; a cross: "
        "something is wrong. The first column is what the prompt asks for."
    )


def draw_steps(file: Path, drawn: Mapping[str, Drawn], rows: Sequence[Row]) -> str:
    """Writes a row per cell: its image after every step, behind the true one.

    Args and returned caption as `draw_samples`.
    """
    cells = list(drawn.values())
    strips = [np.concatenate([one.truth[:1], one.steps]) for one in cells]
    steps = len(cells[0].steps)
    save_table(
        file,
        np.stack(strips).astype(np.float32) / 255,
        ["true image", *(f"step {step}" for step in range(1, steps + 1))],
        [titles(rows)[name] for name in drawn],
    )
    return (
        f'"{cells[0].captions[0]}" after each of {steps} steps, the same seed in every cell. Of '
        "masked cells this is each step's whole prediction, before it is masked again."
    )


def titles(rows: Sequence[Row]) -> dict[str, str]:
    """A cell's name -> its network, corruption and sampler, a line each."""
    return {row["cell"]: f"{row['network']}\n{row['corruption']}\n{row['sampler']}" for row in rows}
