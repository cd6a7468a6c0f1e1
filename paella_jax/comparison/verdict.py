"""Sentences about a comparison: who wins at what, and what each factor changes by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from paella_jax.comparison.intervals import (
    SPLITS,
    Interval,
    Pair,
    at_steps,
    interval,
    interval_of_changes,
    interval_of_means,
    paired_interval,
)
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

PAIRED = ("seen_exact", "heldout_exact", "heldout_attributes", "frechet", "diversity",
          "seconds_per_image")  # fmt: skip
# What comes with a factor beside it.
ALIKE = {"corruption": "each with its own density and positions of the loss"}


def verdict(rows: Sequence[Mapping[str, Any]], main_steps: int | None = None) -> list[str]:
    """Plain sentences: the winners, the average effect of each factor, and that of each variant.

    What is ahead is so only if the interval of the difference leaves zero out (intervals.py), and
    nothing is with one seed. The best of many cells is lucky on average either way.

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
        sentences.append(_winner(cells, name, steps, f"at {steps} steps"))
    sentences.append(_winner(cells, "seconds_per_image", steps, f"at {steps} steps"))
    if fewest != steps:
        where = f"with the fewest steps ({fewest})"
        few = {name: [at_steps(row, fewest) for row in own] for name, own in cells.items()}
        sentences += [_winner(few, n, fewest, where) for n in ("seen_exact", "frechet")]
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
) -> str:
    """One sentence about the best and the second best; empty if fewer than two were measured.

    Exact matches are those of the rows' `exact_of`.
    """
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
    shown = [e.show(metric.digits) for e in (best, next_best)]
    if margin == 0.0:
        tied = [group for group, e in ranked if e.mean == best.mean]
        names = "all" if len(tied) == len(ranked) else f"{', '.join(tied[:-1])} and {tied[-1]}"
        return f"{title} {where}: {names} tie at {shown[0]}."
    ahead = _ahead(groups[first], groups[second], name, steps, (best, next_best))
    sure = _sure(ahead, min(best.seeds, next_best.seeds), metric.digits)
    if name == "seconds_per_image":
        sure = "timed once"
    return (
        f"{title} {where}: {first} is {word} with {shown[0]}, {margin:.{metric.digits}f} ahead of "
        f"{second} ({shown[1]}); {sure}."
    )


def _ahead(
    first: Sequence[Row],
    second: Sequence[Row],
    name: str,
    steps: str | None,
    estimates: tuple[Estimate, Estimate],
) -> Interval | None:
    """What the first cell has more: seed by seed where both sample from the same trainings."""
    pairs = _of_one_training(second, first)
    if not pairs:
        return interval(first, name, second) or interval_of_means(*estimates)
    changes = [read(after, name, steps) - read(before, name, steps) for before, after in pairs]
    return paired_interval([pairs], name) or interval_of_changes(changes)


def _of_one_training(before: Sequence[Row], after: Sequence[Row]) -> list[Pair]:
    """The pairs of rows that differ in the sampler alone."""
    own = lambda row: (row["network"], row["corruption"], row["variant"], row["seed"])
    partner = {own(row): row for row in after}
    return [(row, partner[own(row)]) for row in before if own(row) in partner]


def _sure(found: Interval | None, seeds: int, digits: int = 3) -> str:
    shown = f"95 % interval of the difference {found.show(digits)}" if found else ""
    if seeds < 2:
        return f"{shown}, of captions alone: one seed, so undecided" if shown else (
            "one seed, so undecided"
        )  # fmt: skip
    return shown if found and found.decides() else f"{shown}, so undecided"


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
                alike = ALIKE.get(factor, "all else equal")
                sentences.append(
                    f"{factor.capitalize()} {after} instead of {before}, {alike}, at {steps} steps "
                    "(mean over pairs of trainings, and 95 % interval or ± spread over them): "
                    f"{'; '.join(known)}."
                )
    return sentences


def _variants(rows: Sequence[Row], steps: str) -> list[str]:
    """A sentence per variant: its exact matches beside its cell's and the other corruptions'."""
    groups, sentences = by_cell(rows), []
    for name, own in groups.items():
        if not own[0]["variant"]:
            continue
        alike = [
            (cell, some) for cell, some in groups.items() if not some[0]["variant"]
            and all(some[0][factor] == own[0][factor] for factor in ("network", "sampler"))
        ]  # fmt: skip
        alike.sort(key=lambda item: item[1][0]["corruption"] != own[0]["corruption"])
        parts = [
            f"{metric_of(split, rows).title} {over_seeds(own, split, steps).show(3)}"
            + "".join(_beside(cell, some, own, split, steps) for cell, some in alike)
            for split in SPLITS
        ]
        sentences.append(f"Variant {name}: {'; '.join(parts)}.")
    return sentences


def _beside(name: str, rows: Sequence[Row], variant: Sequence[Row], split: str, steps: str) -> str:
    """As ", uniform / unet / random 0.980 (95 % interval of the difference [0.001, 0.030])"."""
    shown = f", {name} {over_seeds(rows, split, steps).show(3)}"
    found = interval(variant, split, rows)
    return shown + (f" ({_sure(found, min(len(variant), len(rows)))})" if found else "")


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
    if found := _interval_of_pairs(pairs, name):
        shown += f" {found.show()}" + ("" if found.decides() else ", undecided,")
    elif not math.isnan(spread):
        shown += f" ± {spread:.{metric.digits}f}"
    return f"{metric.title} {shown} ({word} in {count_better} of {count})"


def _interval_of_pairs(pairs: Sequence[Pair], name: str) -> Interval | None:
    """Of the mean change; what several samplers draw from one training is one observation."""
    trainings = lambda pair: tuple((row["network"], row["corruption"]) for row in pair)
    of_seeds: dict[tuple[Any, ...], list[Pair]] = {}
    for pair in pairs:
        of_seeds.setdefault((trainings(pair), *(row["seed"] for row in pair)), []).append(pair)
    groups: dict[tuple[Any, ...], list[Pair]] = {}
    for (group, *_), own in of_seeds.items():
        before, after = (_together([pair[i] for pair in own]) for i in range(2))
        groups.setdefault(group, []).append((before, after))
    if any(len(own) < 2 for own in groups.values()):
        return None
    return paired_interval(list(groups.values()), name)


def _together(rows: Sequence[Row]) -> Row:
    """One row of all the images that some rows drew."""
    drawn = [row.get("exact_of", {}) for row in rows]
    splits = [split for split in drawn[0] if all(split in own for own in drawn)]
    exact_of = {
        split: {c: [x for own in drawn for x in own[split].get(c, [])] for c in drawn[0][split]}
        for split in splits
    }
    return rows[0] | {"exact_of": exact_of}
