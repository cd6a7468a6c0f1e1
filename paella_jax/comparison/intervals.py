"""How sure an exact match is: intervals by resampling captions and seeds (a bootstrap).

A row's `exact_of` has, at the main number of steps, for each split: caption -> whether each of its
images is exact. All cells draw the same captions, so a difference is resampled on the same ones.
Seeds are resampled for each cell by itself, but together where two rows are of one training. Two or
three of them say little: then the intervals are mostly the captions'.
`exact_by_steps`, optional, has the same for every number of steps, as `packed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from paella_jax.comparison.rows import Row

RESAMPLES = 2000
LEVEL = 0.95
SPLITS = {"seen_exact": "seen", "heldout_exact": "heldout"}
Pair = tuple[Row, Row]  # of one training: before, after


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
    captions = None if split is None else _captions((*rows, *less), split)
    if split is None or captions is None:
        return None
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, captions, (RESAMPLES, captions))
    values = _resampled(_hits(rows, split), _counts(rows[0], split), chosen, draw)
    if less:
        values -= _resampled(_hits(less, split), _counts(less[0], split), chosen, draw)
    return middle(values)


def paired_interval(groups: Sequence[Sequence[Pair]], metric: str) -> Interval | None:
    """Of what the pairs' second rows have more than their first, averaged over the groups.

    Args:
      groups: pairs of one training each; trainings are resampled within a group.
      metric: "seen_exact" or "heldout_exact".

    Returns:
      None where images were not scored one by one.
    """
    split = SPLITS.get(metric)
    every = [row for group in groups for pair in group for row in pair]
    captions = None if split is None else _captions(every, split)
    if split is None or captions is None:
        return None
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, captions, (RESAMPLES, captions))
    counts, values = _counts(every[0], split), np.zeros(RESAMPLES)
    for group in groups:
        before, after = (_hits([pair[i] for pair in group], split) for i in range(2))
        values += _resampled(after - before, counts, chosen, draw) / len(groups)
    return middle(values)


def middle(values: np.ndarray, level: float = LEVEL) -> Interval:
    """The middle part of resampled values [resamples]."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def packed(exact_of: Mapping[str, Mapping[str, Sequence[bool]]]) -> dict[str, str]:
    """Split -> a digit per image, in the order of the captions: small enough for every step."""
    return {
        split: "".join(str(int(right)) for images in own.values() for right in images)
        for split, own in exact_of.items()
    }


def at_steps(row: Row, steps: str) -> Row:
    """The row with `exact_of` at a number of steps, without any if that was not kept."""
    kept = row.get("exact_by_steps", {}).get(steps, {})
    exact_of = {}
    for split, digits in kept.items():
        rights = iter(digit == "1" for digit in digits)
        own = row["exact_of"][split].items()
        exact_of[split] = {caption: [next(rights) for _ in images] for caption, images in own}
    return row | {"exact_of": exact_of}


def _captions(rows: Sequence[Row], split: str) -> int | None:
    """How many captions all rows were scored on, image by image; None if they were not."""
    known = [row.get("exact_of", {}).get(split) for row in rows]
    if not all(known) or any(list(own) != list(known[0]) for own in known):
        return None
    return len(known[0])


def _hits(rows: Sequence[Row], split: str) -> np.ndarray:
    """Exact images of every row and caption, float [rows, captions]."""
    return np.array([[sum(own) for own in row["exact_of"][split].values()] for row in rows], float)


def _counts(row: Row, split: str) -> np.ndarray:
    """Images of every caption, float [captions]."""
    return np.array([len(own) for own in row["exact_of"][split].values()], float)


def _resampled(
    hits: np.ndarray, counts: np.ndarray, captions: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """The mean over chosen captions and seeds, float [resamples]; images weigh alike."""
    seeds = draw.integers(0, len(hits), (len(captions), len(hits)))
    of_captions = hits[seeds[:, :, None], captions[:, None, :]].sum(-1)  # [resamples, seeds]
    return of_captions.mean(1) / counts[captions].sum(1)
