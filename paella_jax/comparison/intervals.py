"""How sure an exact match is: intervals by resampling captions and seeds (a bootstrap).

A row's `exact_of` has, at the main number of steps, for each split: caption -> whether each of its
images is exact. All cells draw the same captions, so a difference is resampled on the same ones.
Seeds are resampled for each cell by itself. Two or three of them say little: then the intervals
are mostly the captions'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paella_jax.comparison.rows import Row

RESAMPLES = 2000
LEVEL = 0.95
SPLITS = {"seen_exact": "seen", "heldout_exact": "heldout"}


class Interval(NamedTuple):
    """The middle 95 % of the resampled values."""

    low: float
    high: float

    def show(self, digits: int = 3) -> str:
        """As "[0.912, 0.958]"."""
        return f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(rows: Sequence[Row], metric: str, less: Sequence[Row] = ()) -> Interval | None:
    """Of a cell's exact match, or of what it has more than another cell's.

    Args:
      rows: of the cell, one per seed.
      metric: "seen_exact" or "heldout_exact".
      less: rows of the cell to subtract.

    Returns:
      None where images were not scored one by one.
    """
    split = SPLITS.get(metric)
    if split is None or not all(row.get("exact_of", {}).get(split) for row in (*rows, *less)):
        return None
    captions = list(rows[0]["exact_of"][split])
    if any(list(row["exact_of"][split]) != captions for row in (*rows, *less)):
        return None
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, len(captions), (RESAMPLES, len(captions)))
    values = _resampled(rows, split, chosen, draw)
    if less:
        values = values - _resampled(less, split, chosen, draw)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def _resampled(
    rows: Sequence[Row], split: str, captions: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """The mean over chosen captions and seeds, float [resamples]; images weigh alike."""
    scored = [list(row["exact_of"][split].values()) for row in rows]
    hits = np.array([[sum(images) for images in row] for row in scored], float)
    counts = np.array([len(images) for images in scored[0]], float)
    seeds = draw.integers(0, len(rows), (len(captions), len(rows)))
    of_captions = hits[seeds[:, :, None], captions[:, None, :]].sum(-1)  # [resamples, seeds]
    return of_captions.mean(1) / counts[captions].sum(1)
