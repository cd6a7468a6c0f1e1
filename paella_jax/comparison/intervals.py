"""How sure a measurement is: 95 % intervals over captions and seeds.

A row's `exact_of` has, at the main number of steps, for each split: caption -> whether each of its
images is exact. Captions are resampled (a bootstrap); all cells draw the same ones, so a difference
is resampled on the same ones. Seeds are too few for that: intervals of three that are resampled
hold the truth three times in four, not 95 times in 100. So around the mean of resampled captions
the seeds' part is drawn from Student's t distribution, of which one seed has none. Where two rows
are of one training, what changes between them is one number per seed.
`exact_by_steps`, optional, has the same as `exact_of` for every number of steps, as `packed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from paella_jax.comparison.rows import Estimate, Row, estimate

RESAMPLES = 2000
LEVEL = 0.95
NO_EXCEPTION = 3.0  # of so many in n, none is seen among n in 5 of 100 comparisons
SPLITS = {"seen_exact": "seen", "heldout_exact": "heldout"}
Pair = tuple[Row, Row]  # of one training: before, after


class Interval(NamedTuple):
    """What holds the true value in 95 of 100 comparisons."""

    low: float
    high: float

    def show(self, digits: int = 3) -> str:
        """As "[0.912, 0.958]"."""
        return f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def decides(self) -> bool:
        """Whether a difference is not zero."""
        return self.low > 0 or self.high < 0


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
    parts = [(1.0, _hits(rows, split))] + ([(-1.0, _hits(less, split))] if less else [])
    values = _drawn(parts, _counts(rows[0], split))
    found = middle(np.clip(values, -1.0 if less else 0.0, 1.0))
    return found if less or found.low < found.high else _of_one_kind(found.low, captions)


def _of_one_kind(share: float, captions: int) -> Interval:
    """Where all are right, or none is, resampling knows no doubt; the rule of three does."""
    doubt = NO_EXCEPTION / captions
    return Interval(max(share - doubt, 0.0), min(share + doubt, 1.0))


def paired_interval(groups: Sequence[Sequence[Pair]], metric: str) -> Interval | None:
    """Of what the pairs' second rows have more than their first, averaged over the groups.

    Args:
      groups: pairs, one for each seed, of what has a spread of its own, such as a network.
      metric: "seen_exact" or "heldout_exact".

    Returns:
      None where images were not scored one by one.
    """
    split = SPLITS.get(metric)
    every = [row for group in groups for pair in group for row in pair]
    captions = None if split is None else _captions(every, split)
    if split is None or captions is None:
        return None
    parts = []
    for group in groups:
        before, after = (_hits([pair[i] for pair in group], split) for i in range(2))
        parts.append((1 / len(groups), after - before))
    return middle(_drawn(parts, _counts(every[0], split)))


def interval_of_means(first: Estimate, second: Estimate) -> Interval | None:
    """Of the difference of two means over seeds, by Welch's test; None of one seed."""
    if min(first.seeds, second.seeds) < 2:
        return None
    parts = [one.spread**2 / one.seeds for one in (first, second)]
    freedom = [part**2 / (one.seeds - 1) for part, one in zip(parts, (first, second), strict=True)]
    error = np.sqrt(sum(parts))
    half = error * stdtrit(sum(parts) ** 2 / sum(freedom), (1 + LEVEL) / 2) if error else 0.0
    change = first.mean - second.mean
    return Interval(float(change - half), float(change + half))


def interval_of_changes(changes: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Of the mean of one change per training; None of one training."""
    mean, spread, count = estimate(changes)
    if count < 2:
        return None
    half = float(spread / np.sqrt(count) * stdtrit(count - 1, (1 + level) / 2))
    return Interval(mean - half, mean + half)


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


def _drawn(parts: Sequence[tuple[float, np.ndarray]], counts: np.ndarray) -> np.ndarray:
    """A weighted sum of means over captions and seeds, as it may be, float [resamples].

    Args:
      parts: weight and hits [seeds, captions] of each, which have seeds of their own.
      counts: images of every caption, which weigh alike.
    """
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, len(counts), (RESAMPLES, len(counts)))
    hits = sum(weight * own.mean(0) for weight, own in parts)
    mean = hits.sum() / counts.sum()
    captions = hits[chosen].sum(1) / counts[chosen].sum(1) - mean
    # The luck of single images is in what seeds differ by; captions are not to have it again.
    luck = sum(weight**2 * _luck(own) / len(own) for weight, own in parts)
    values = mean + captions * np.sqrt(max(1 - luck / max(hits.var(ddof=1), 1e-12), 0.0))
    for weight, own in parts:
        if (seeds := len(own)) > 1:
            error = (own.sum(1) / counts.sum()).std(ddof=1) / np.sqrt(seeds)
            values += weight * error * draw.standard_t(seeds - 1, RESAMPLES)
    return values


def _luck(hits: np.ndarray) -> float:
    """Variance of hits [seeds, captions] that neither captions nor seeds explain."""
    if len(hits) < 2:
        return 0.0
    left = hits - hits.mean(0) - hits.mean(1, keepdims=True) + hits.mean()
    return float((left**2).sum() / ((len(hits) - 1) * (hits.shape[1] - 1)))
