"""Whether what the papers say holds here: decided by intervals and counts, never by hand.

A claim is decided from trainings with at least `SEEDS` different seeds; of a network that draws
hardly anything right, nothing follows (`LEARNED`). A difference of exact matches up to `NOTHING`
counts as none, so that "no worse" and "no help" can hold at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from paella_jax.comparison.intervals import (
    LEVEL,
    RESAMPLES,
    Interval,
    Pair,
    at_steps,
    middle,
    paired_interval,
)
from paella_jax.comparison.rows import (
    Row,
    cells_alone,
    check_rows,
    metric,
    over_seeds,
    read,
    reference_steps,
)

SEEDS = 3
NOTHING = 0.02  # of exact matches
LEARNED = 0.1  # exact matches of a cell that its papers' claims can be asked of
FEW = 8  # steps; MUSE draws 256 tokens in 24
MOST, LEAST = 0.75, 0.25  # fractions of searches that decide
FEWEST_TRAININGS = 5  # where seeds alone are resampled: fewer agree by chance too often

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "undecided"
METRIC = "seen_exact"


class Finding(NamedTuple):
    """One of `HOLDS`, `FAILS` and `OPEN`, and the numbers that say so."""

    outcome: str
    reason: str


class Claim(NamedTuple):
    """What a paper says, and how (rows, main steps) decide it."""

    text: str
    decide: Callable[[Sequence[Row], str], Finding]


def literature(rows: Sequence[Mapping[str, Any]], main_steps: int | None = None) -> list[str]:
    """One sentence per claim: "Paella: ...: holds here (...)."

    Raises:
      ValueError: as `check_rows`.
    """
    clean = cells_alone(check_rows(rows))
    steps = reference_steps(clean, main_steps)
    found = [(claim, claim.decide(clean, steps)) for claim in CLAIMS]
    return [f"{claim.text}: {own.outcome} ({own.reason})." for claim, own in found]


def more_steps_do_not_help(rows: Sequence[Row], steps: str) -> Finding:
    """Paella's sampler at the most steps against the main ones."""
    own, most = _cells(rows, "uniform", "random"), _most(rows)
    if int(most) <= int(steps):
        return Finding(OPEN, f"no more than {steps} steps were measured")
    return _no_help(_between_steps(own, steps, most), f"{most} instead of {steps} steps")


def few_steps_suffice(rows: Sequence[Row], steps: str) -> Finding:
    """MUSE's sampler at the most steps against few."""
    own, most = _cells(rows, "mask", "confidence"), _most(rows)
    few = [count for count in rows[0]["by_steps"] if int(count) <= FEW]
    if not few or few[-1] == most:
        return Finding(OPEN, f"needs a measurement at up to {FEW} steps and one at more")
    return _no_help(_between_steps(own, few[-1], most), f"{most} instead of {few[-1]} steps")


def steps_are_best_for_frechet(rows: Sequence[Row], steps: str) -> Finding:
    """Paella's sampler at the main steps against every other count, trainings resampled."""
    own = [row for row in _cells(rows, "uniform", "random") if _has_learned([row])]
    others = [count for count in rows[0]["by_steps"] if count != steps]
    changes = {
        count: np.array([read(r, "frechet", count) - read(r, "frechet", steps) for r in own])
        for count in others
    }
    if not others or not own or any(np.isnan(values).any() for values in changes.values()):
        return Finding(OPEN, "no learned cell with the distance at several step counts")
    if len(own) < FEWEST_TRAININGS or len({row["seed"] for row in own}) < SEEDS:
        return Finding(OPEN, f"needs {FEWEST_TRAININGS} trainings and {SEEDS} seeds")
    level = 1 - (1 - LEVEL) / len(others)  # several are looked at
    found = {count: _of_trainings(values, level) for count, values in changes.items()}
    shown = "; ".join(f"{count} steps {one.show(2)}" for count, one in found.items())
    reason = f"change of the distance from {steps} to {shown}, {len(own)} trainings"
    if all(one.low > 0 for one in found.values()):
        return Finding(HOLDS, reason)
    return Finding(FAILS if any(one.high < 0 for one in found.values()) else OPEN, reason)


def random_is_not_worse(rows: Sequence[Row], steps: str) -> Finding:
    """On random tokens: renoising random positions against the least confident ones."""
    pairs = _between_samplers(rows, "uniform", "confidence", "random")
    found, reason = _difference(pairs, "random instead of lowest-confidence positions")
    if found is None:
        return Finding(OPEN, reason)
    if found.low >= -NOTHING:
        return Finding(HOLDS, f"{reason}; {'better' if found.low > 0 else 'not better either'}")
    return Finding(FAILS if found.high < 0 else OPEN, reason)


def confidence_beats_random(rows: Sequence[Row], steps: str) -> Finding:
    """On masks: keeping the most confident tokens against keeping random ones."""
    pairs = _between_samplers(rows, "mask", "random", "confidence")
    found, reason = _difference(pairs, "confidence instead of random positions")
    if found is None:
        return Finding(OPEN, reason)
    if found.low > 0:
        return Finding(HOLDS, reason)
    return Finding(FAILS if found.high <= NOTHING else OPEN, reason)


def rising_guidance_is_chosen(rows: Sequence[Row], steps: str) -> Finding:
    """How often the search of MUSE's cells chose a guidance that rises over the steps."""
    own = [row for row in _cells(rows, "mask", "confidence") if _has_learned([row], steps)]
    chosen = [_rises(row["guidance_scale"]) for row in own if "guidance_scale" in row]
    tried = {_rises(pair) for row in own for pair in row.get("guidance_tried", [])} | set(chosen)
    if len(tried) < 2:
        return Finding(OPEN, "no learned cell whose search tried both")
    offered = [_rises(pair) for pair in own[0].get("guidance_tried", [])]
    among = f", which had {sum(offered)} that rise among {len(offered)}" if offered else ""
    count = f"chosen by {sum(chosen)} of {len(chosen)} searches{among}"
    if len({row["seed"] for row in own}) < SEEDS:
        return Finding(OPEN, f"{count}, with fewer than {SEEDS} seeds")
    share = sum(chosen) / len(chosen)
    return Finding(HOLDS if share >= MOST else FAILS if share <= LEAST else OPEN, count)


CLAIMS = (
    Claim("Paella: about 12 steps are enough, more do not help", more_steps_do_not_help),
    Claim("Paella: about 12 steps give the best Fréchet distance", steps_are_best_for_frechet),
    Claim(
        "Paella: renoising random positions is no worse than renoising the least confident",
        random_is_not_worse,
    ),
    Claim("MUSE: few steps suffice", few_steps_suffice),
    Claim("MUSE, MaskGIT: confidence decoding beats random positions", confidence_beats_random),
    Claim(
        "MUSE: guidance that rises over the steps is chosen over constant guidance",
        rising_guidance_is_chosen,
    ),
)


def _no_help(pairs: Sequence[Pair], what: str) -> Finding:
    """Holds where the second rows gain nothing, fails where they surely gain."""
    found, reason = _difference(pairs, what)
    if found is None:
        return Finding(OPEN, reason)
    if found.high <= NOTHING:
        return Finding(HOLDS, reason)
    return Finding(FAILS if found.low > 0 else OPEN, reason)


def _difference(pairs: Sequence[Pair], what: str) -> tuple[Interval | None, str]:
    """The interval of a mean gain over networks, and its numbers; None and why not."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0]["network"], []).append(pair)
    learned = [own for own in groups.values() if _is_right_sometimes(own)]
    if not learned:
        return None, "no cell has learned, or images were not scored one by one at these steps"
    if any(len({pair[0]["seed"] for pair in own}) < SEEDS for own in learned):
        return None, f"fewer than {SEEDS} seeds"
    found = paired_interval(learned, METRIC)
    if found is None:
        return None, "the trainings were scored on different captions"
    names = ", ".join(own[0][0]["network"] for own in learned)
    count = sum(map(len, learned))
    interval = f"[{found.low:+.3f}, {found.high:+.3f}]"
    title = metric(METRIC, learned[0][0]).title
    return found, (
        f"{what}: {title} changes by {interval}, 95 %, {count} trainings of {names}; "
        f"up to {NOTHING:g} counts as nothing"
    )


def _is_right_sometimes(pairs: Sequence[Pair]) -> bool:
    means = [np.mean([_mean_exact(pair[i]) for pair in pairs]) for i in range(2)]
    return float(max(means)) >= LEARNED


def _mean_exact(row: Row) -> float:
    """Exact images of `exact_of`; 0 where there are none."""
    images = [right for own in row.get("exact_of", {}).get("seen", {}).values() for right in own]
    return float(np.mean(images)) if images else 0.0


def _has_learned(rows: Sequence[Row], steps: str | None = None) -> bool:
    """Whether rows reach `LEARNED` at these steps, or at any."""
    counts = [steps] if steps else list(rows[0]["by_steps"])
    return any(over_seeds(rows, METRIC, count).mean >= LEARNED for count in counts)


def _cells(rows: Sequence[Row], corruption: str, sampler: str) -> list[Row]:
    return [r for r in rows if (r["corruption"], r["sampler"]) == (corruption, sampler)]


def _most(rows: Sequence[Row]) -> str:
    return list(rows[0]["by_steps"])[-1]


def _between_steps(rows: Sequence[Row], before: str, after: str) -> list[Pair]:
    return [(at_steps(row, before), at_steps(row, after)) for row in rows]


def _between_samplers(rows: Sequence[Row], corruption: str, before: str, after: str) -> list[Pair]:
    """Rows of one training that differ in the sampler."""
    partner = {(r["network"], r["seed"]): r for r in _cells(rows, corruption, after)}
    own = [(row, (row["network"], row["seed"])) for row in _cells(rows, corruption, before)]
    return [(row, partner[key]) for row, key in own if key in partner]


def _of_trainings(values: np.ndarray, level: float) -> Interval:
    """The mean over resampled trainings."""
    chosen = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return middle(values[chosen].mean(1), level)


def _rises(pair: Sequence[float]) -> bool:
    return pair[0] < pair[1]
