"""Whether what the papers say holds here: decided by intervals and counts, never by hand.

A claim is decided from trainings with at least `SEEDS` different seeds; of a network that draws
hardly anything right, nothing follows (`LEARNED`). A difference of exact matches up to `NOTHING`
counts as none, so that "no worse" and "no help" can hold at all. Where all seen captions are about
right whatever is done, which says nothing, held-out ones decide. The networks together decide,
unless two of them alone say the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from paella_jax.comparison.intervals import (
    LEVEL,
    Interval,
    Pair,
    at_steps,
    interval_of_changes,
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
FEWEST_TRAININGS = 5  # where nothing but trainings differ

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "undecided"
METRIC, HARDER = "seen_exact", "heldout_exact"


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
    """Paella's sampler at the main steps against every other count, over trainings."""
    own = [row for row in _cells(rows, "uniform", "random") if _has_learned([row])]
    others = [count for count in rows[0]["by_steps"] if count != steps]
    changes = {
        count: [read(r, "frechet", count) - read(r, "frechet", steps) for r in own]
        for count in others
    }
    if not others or not own or any(any(map(math.isnan, values)) for values in changes.values()):
        return Finding(OPEN, "no learned cell with the distance at several step counts")
    if len(own) < FEWEST_TRAININGS or len({row["seed"] for row in own}) < SEEDS:
        return Finding(OPEN, f"needs {FEWEST_TRAININGS} trainings and {SEEDS} seeds")
    level = 1 - (1 - LEVEL) / len(others)  # several are looked at
    found = {count: interval_of_changes(values, level) for count, values in changes.items()}
    known = {count: one for count, one in found.items() if one is not None}
    shown = "; ".join(f"{count} steps {one.show(2)}" for count, one in known.items())
    reason = f"change of the distance from {steps} to {shown}, {len(own)} trainings"
    if all(one.low > 0 for one in known.values()):
        return Finding(HOLDS, reason)
    return Finding(FAILS if any(one.high < 0 for one in known.values()) else OPEN, reason)


def random_is_not_worse(rows: Sequence[Row], steps: str) -> Finding:
    """On random tokens: renoising random positions against the least confident ones."""
    pairs = _between_samplers(rows, "uniform", "confidence", "random")
    what = "random instead of lowest-confidence positions"
    return _decided(pairs, what, lambda own: own.low >= -NOTHING, lambda own: own.high < 0)


def confidence_beats_random(rows: Sequence[Row], steps: str) -> Finding:
    """On masks: keeping the most confident tokens against keeping random ones."""
    pairs = _between_samplers(rows, "mask", "random", "confidence")
    what = "confidence instead of random positions"
    return _decided(pairs, what, lambda own: own.low > 0, lambda own: own.high <= NOTHING)


def rising_guidance_is_chosen(rows: Sequence[Row], steps: str) -> Finding:
    """How often a guidance that rises over the steps drew more than any constant one.

    Against how often chance would have it: its share of what was tried. Searches that tie do not
    count.
    """
    own = [row for row in _cells(rows, "mask", "confidence") if _has_learned([row], steps)]
    tried = [row["tried"] for row in own if row.get("tried")]
    rising = [[_rises(one["settings"]["guidance_scale"]) for one in search] for search in tried]
    if not tried or not 0 < sum(rising[0]) < len(rising[0]):
        return Finding(OPEN, "no learned cell whose search tried both")
    if len({row["seed"] for row in own}) < SEEDS:
        return Finding(OPEN, f"fewer than {SEEDS} seeds")
    wins = [_ahead(search, marks) for search, marks in zip(tried, rising, strict=True)]
    decided = [win for win in wins if win is not None]
    share = sum(rising[0]) / len(rising[0])
    count = (
        f"ahead in {sum(decided)} of {len(tried)} searches, {len(wins) - len(decided)} tied; by "
        f"chance in {100 * share:.0f} %"
    )
    if not decided:
        return Finding(OPEN, count)
    low, high = _share_interval(sum(decided), len(decided))
    return Finding(HOLDS if low > share else FAILS if high < share else OPEN, count)


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
        "MUSE: guidance that rises over the steps is better than constant guidance",
        rising_guidance_is_chosen,
    ),
)


def _no_help(pairs: Sequence[Pair], what: str) -> Finding:
    """Holds where the second rows gain nothing, fails where they surely gain."""
    what += ", with settings tuned at the main number of steps"
    return _decided(pairs, what, lambda own: own.high <= NOTHING, lambda own: own.low > 0)


def _decided(
    pairs: Sequence[Pair],
    what: str,
    holds: Callable[[Interval], bool],
    fails: Callable[[Interval], bool],
) -> Finding:
    """By the interval of the mean gain over networks; open where two networks say the opposite."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0]["network"], []).append(pair)
    learned = [own for own in groups.values() if _is_right_sometimes(own)]
    if not learned:
        return Finding(
            OPEN, "no cell has learned, or images were not scored one by one at these steps"
        )
    if any(len({pair[0]["seed"] for pair in own}) < SEEDS for own in learned):
        return Finding(OPEN, f"fewer than {SEEDS} seeds")
    name = HARDER if min(min(_means(own)) for own in learned) > 1 - 2 * NOTHING else METRIC
    found = paired_interval(learned, name)
    alone = {own[0][0]["network"]: paired_interval([own], name) for own in learned}
    if found is None:
        return Finding(OPEN, "the trainings were scored on different captions")
    known = [one for one in alone.values() if one is not None]
    shown = "; ".join(f"{network} {_signed(one)}" for network, one in alone.items() if one)
    title = metric(name, learned[0][0]).title
    reason = (
        f"{what}: {title} changes by {_signed(found)}, 95 %, {sum(map(len, learned))} trainings "
        f"({shown}); up to {NOTHING:g} counts as nothing"
    )
    opposite = any(map(holds, known)) and any(map(fails, known))
    if opposite or not (holds(found) or fails(found)):
        return Finding(OPEN, reason)
    return Finding(HOLDS if holds(found) else FAILS, reason)


def _signed(found: Interval) -> str:
    return f"[{found.low:+.3f}, {found.high:+.3f}]"


def _is_right_sometimes(pairs: Sequence[Pair]) -> bool:
    return max(_means(pairs)) >= LEARNED


def _means(pairs: Sequence[Pair]) -> list[float]:
    """Exact images of seen captions, of the first rows and of the second."""
    return [float(np.mean([_mean_exact(pair[i]) for pair in pairs])) for i in range(2)]


def _mean_exact(row: Row) -> float:
    """Exact images of `exact_of`; 0 where there are none."""
    images = [right for own in row.get("exact_of", {}).get("seen", {}).values() for right in own]
    return float(np.mean(images)) if images else 0.0


def _ahead(search: Sequence[Mapping[str, Any]], marks: Sequence[bool]) -> bool | None:
    """Whether the best of the marked settings drew more than the best of the others."""
    score = lambda mark: max(
        (one["exact"], one["attributes"])
        for one, own in zip(search, marks, strict=True) if own == mark
    )  # fmt: skip
    marked, others = score(True), score(False)
    return None if marked == others else marked > others


def _share_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.96
    center, half = count + z**2 / 2, z * np.sqrt(count * (of - count) / of + z**2 / 4)
    return float((center - half) / (of + z**2)), float((center + half) / (of + z**2))


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


def _rises(pair: Sequence[float]) -> bool:
    return pair[0] < pair[1]
