"""Sentences about a comparison: who wins at what, and what each factor changes by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from paella_jax.comparison.intervals import Interval, interval
from paella_jax.comparison.rows import (
    FACTORS,
    METRICS,
    STEP_METRICS,
    Estimate,
    Row,
    by_cell,
    by_training,
    cells_alone,
    check_rows,
    estimate,
    over_seeds,
    read,
    reference_steps,
)
from paella_jax.comparison.rows import metric as metric_of

PAIRED = ("seen_exact", "heldout_attributes", "frechet", "diversity", "seconds_per_image")


def verdict(rows: Sequence[Mapping[str, Any]], main_steps: int | None = None) -> list[str]:
    """Plain sentences: the winners, the average effect of each factor, and that of each variant.

    An exact match is ahead only if the interval of the difference leaves zero out (intervals.py).
    Other margins count if they exceed the larger of the two cells' standard deviations over seeds.
    That is a rule of thumb: few seeds estimate it badly. The best of many cells is lucky on average
    either way.

    Raises:
      ValueError: as `check_rows`.
    """
    clean = check_rows(rows)
    steps = reference_steps(clean, main_steps)
    cells = cells_alone(clean)
    return _winners(cells, steps) + _paired(cells, steps) + _variants(clean, steps)


def _winners(rows: Sequence[Row], steps: str) -> list[str]:
    cells = by_cell(rows)
    fewest = next(iter(rows[0]["by_steps"]))
    sentences = []
    for name in ("seen_exact", "heldout_exact", "heldout_clean", "frechet", "diversity"):
        sentences.append(_winner(cells, name, steps, f"at {steps} steps", steps))
    sentences.append(_winner(cells, "seconds_per_image", steps, f"at {steps} steps"))
    if fewest != steps:
        where = f"with the fewest steps ({fewest})"
        sentences += [_winner(cells, n, fewest, where) for n in ("seen_exact", "frechet")]
    for corruption in dict.fromkeys(row["corruption"] for row in rows):
        # Not across corruptions: a mask tells which tokens are missing, a random code does not.
        own = by_training([row for row in rows if row["corruption"] == corruption])
        where = f"on corrupted tokens, {corruption} corruption, mean over the levels"
        sentences.append(_winner(own, "cross_entropy", None, where))
    return [sentence for sentence in sentences if sentence]


def _winner(
    groups: Mapping[str, Sequence[Row]],
    name: str,
    steps: str | None,
    where: str,
    main_steps: str | None = None,
) -> str:
    """One sentence about the best and the second best; empty if fewer than two were measured."""
    metric = metric_of(name, next(iter(groups.values())))
    found = {group: over_seeds(rows, name, steps) for group, rows in groups.items()}
    sign = 1 if metric.higher_is_better is False else -1
    word = "highest" if metric.higher_is_better is None else "best"
    ranked = sorted(
        ((group, e) for group, e in found.items() if e.seeds), key=lambda item: sign * item[1].mean
    )
    if len(ranked) < 2:
        return ""
    (first, best), (second, next_best) = ranked[:2]
    title = metric.title[0].upper() + metric.title[1:]
    margin = abs(best.mean - next_best.mean)
    sure = interval(groups[first], name, groups[second]) if steps == main_steps else None
    shown = [e.show(metric.digits) for e in (best, next_best)]
    if margin == 0.0:
        tied = [group for group, e in ranked if e.mean == best.mean]
        names = "all" if len(tied) == len(ranked) else f"{', '.join(tied[:-1])} and {tied[-1]}"
        return f"{title} {where}: {names} tie at {shown[0]}."
    return (
        f"{title} {where}: {first} is {word} with {shown[0]}, {margin:.{metric.digits}f} ahead of "
        f"{second} ({shown[1]}); {_sure(sure) or _weight(margin, best, next_best, metric.digits)}."
    )


def _sure(found: Interval | None) -> str:
    if found is None:
        return ""
    decided = found.low > 0 or found.high < 0
    shown = f"95 % interval of the difference {found.show()}"
    return f"{shown}" if decided else f"{shown}, so undecided"


def _weight(margin: float, first: Estimate, second: Estimate, digits: int) -> str:
    if math.isnan(first.spread) or math.isnan(second.spread):
        return "one seed, so the spread over seeds is unknown"
    spread = max(first.spread, second.spread)
    if margin > spread:
        return f"more than the spread over seeds ({spread:.{digits}f})"
    return f"within the spread over seeds ({spread:.{digits}f}), so undecided"


def _paired(rows: Sequence[Row], steps: str) -> list[str]:
    """A sentence per factor and pair of its values, over the rows that differ in it alone."""
    sentences = []
    for factor in FACTORS:
        values = list(dict.fromkeys(row[factor] for row in rows))
        for before, after in combinations(values, 2):
            pairs = _pairs(rows, factor, before, after)
            effects = [_effect(pairs, name, steps) for name in PAIRED]
            if factor == "network":  # corruptions do not compare
                effects.append(_effect(pairs, "cross_entropy", None))
            known = [effect for effect in effects if effect]
            if known:
                sentences.append(
                    f"{factor.capitalize()} {after} instead of {before}, all else equal, at "
                    f"{steps} steps (mean ± spread over pairs of trainings): {'; '.join(known)}."
                )
    return sentences


def _variants(rows: Sequence[Row], steps: str) -> list[str]:
    """A sentence per variant: what it changes of its cell's exact matches on seen captions."""
    groups, sentences = by_cell(rows), []
    title = metric_of("seen_exact", rows).title
    for name, own in groups.items():
        if not own[0]["variant"]:
            continue
        cell = groups.get(name.removesuffix(f" / {own[0]['variant']}"), [])
        shown = [over_seeds(group, "seen_exact", steps).show(3) for group in (own, cell)]
        sure = interval(own, "seen_exact", cell) if cell else None
        end = f"; {_sure(sure)}" if sure else ""
        sentences.append(f"Variant {name}: {title} {shown[0]}, the cell {shown[1]}{end}.")
    return sentences


def _pairs(rows: Sequence[Row], factor: str, before: str, after: str) -> list[tuple[Row, Row]]:
    others = [name for name in (*FACTORS, "seed") if name != factor]
    index = {(row[factor], *(row[name] for name in others)): row for row in rows}
    pairs = []
    for (value, *rest), row in index.items():
        partner = index.get((after, *rest))
        if value == before and partner is not None:
            pairs.append((row, partner))
    return pairs


def _effect(pairs: Sequence[tuple[Row, Row]], name: str, steps: str | None) -> str:
    """As "seen exact match +0.030 ± 0.010 (better in 5 of 6)"; empty without a measured pair.

    Pairs that share their two trainings are one: several samplers do not make two trainings more.
    """
    metric = metric_of(name, pairs[0]) if pairs else METRICS[name]
    at = steps if name in STEP_METRICS else None
    of_trainings: dict[tuple[Any, ...], list[float]] = {}
    for pair in pairs:
        change = read(pair[1], name, at) - read(pair[0], name, at)
        key = tuple((row["network"], row["corruption"], row["seed"]) for row in pair)
        if not math.isnan(change):
            of_trainings.setdefault(key, []).append(change)
    if not of_trainings:
        return ""
    changes = [sum(own) / len(own) for own in of_trainings.values()]
    mean, spread, count = estimate(changes)
    sign = -1 if metric.higher_is_better is False else 1
    word = "higher" if metric.higher_is_better is None else "better"
    count_better = sum(sign * change > 0 for change in changes)
    shown = f"{mean:+.{metric.digits}f}"
    if not math.isnan(spread):
        shown += f" ± {spread:.{metric.digits}f}"
    return f"{metric.title} {shown} ({word} in {count_better} of {count})"
