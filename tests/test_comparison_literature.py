"""What the papers claim, decided from made-up rows: every outcome appears."""

from __future__ import annotations

import numpy as np
import pytest
from test_comparison_report import make_row

from paella_jax.comparison.intervals import at_steps, interval, packed, paired_interval
from paella_jax.comparison.literature import (
    CLAIMS,
    FAILS,
    HOLDS,
    OPEN,
    confidence_beats_random,
    few_steps_suffice,
    literature,
    more_steps_do_not_help,
    random_is_not_worse,
    rising_guidance_is_chosen,
    steps_are_best_for_frechet,
)
from paella_jax.comparison.rows import check_rows

STEPS = ("4", "8", "12", "24")
CAPTIONS = 400


def scored(cell, seed, rates, frechet=None, **changes):
    """A row whose captions are right at these rates: caption i where its number is below it.

    Numbers are the same for all rows, so that rates differ on the same captions.
    """
    numbers = np.random.default_rng(7).permutation(CAPTIONS) / CAPTIONS
    of_steps = {}
    for steps, rate in zip(STEPS, rates, strict=True):
        right = {f"caption {i}": [bool(x < rate)] for i, x in enumerate(numbers)}
        of_steps[steps] = {"seen": right, "heldout": right}
    row = make_row(cell, seed, steps=[int(s) for s in STEPS]) | changes
    for steps, rate, distance in zip(STEPS, rates, frechet or (3.0,) * 4, strict=True):
        row["by_steps"][int(steps)] |= {"seen_exact": rate, "frechet": distance}
    kept = {steps: packed(one) for steps, one in of_steps.items()}
    return row | {"exact_of": of_steps["12"], "exact_by_steps": kept}


def cells(corruption, sampler, rates, seeds=3, networks=("unet", "uvit"), **changes):
    return [
        scored((corruption, network, sampler), seed, rates, **changes)
        for network in networks
        for seed in range(seeds)
    ]


def decide(claim, rows, steps="12"):
    return claim(check_rows(rows), steps)


SAME, BETTER = (0.5, 0.8, 0.8, 0.8), (0.5, 0.6, 0.7, 0.9)


@pytest.mark.parametrize("claim, corruption, sampler", [
    (more_steps_do_not_help, "uniform", "random"),
    (few_steps_suffice, "mask", "confidence"),
])  # fmt: skip
@pytest.mark.parametrize("rates, outcome", [(SAME, HOLDS), (BETTER, FAILS)])
def test_steps(claim, corruption, sampler, rates, outcome):
    found = decide(claim, cells(corruption, sampler, rates))
    assert found.outcome == outcome and "6 trainings (unet [" in found.reason


def test_steps_that_may_or_may_not_help():
    """Seeds that disagree: the mean gain is 0.02, and it may as well be none."""
    rates = [(0.5, 0.8, 0.8, 0.9), (0.5, 0.8, 0.8, 0.8), (0.5, 0.8, 0.8, 0.76)]
    rows = [scored(("uniform", "unet", "random"), i, own) for i, own in enumerate(rates)]
    assert decide(more_steps_do_not_help, rows).outcome == OPEN


def test_steps_that_were_not_measured():
    rows = cells("uniform", "random", SAME)
    assert "no more than 24 steps" in decide(more_steps_do_not_help, rows, "24").reason
    for row in rows:
        del row["exact_by_steps"]
    assert decide(more_steps_do_not_help, rows).outcome == OPEN
    short = [make_row(("mask", "unet", "confidence"), steps=(12, 24))]
    assert "up to 8 steps" in decide(few_steps_suffice, short).reason


@pytest.mark.parametrize("seeds, rate, reason", [
    (2, 0.8, "fewer than 3 seeds"), (3, 0.05, "learned"),
])  # fmt: skip
def test_nothing_follows_from_few_seeds_or_from_cells_that_draw_nothing(seeds, rate, reason):
    rows = cells("uniform", "random", (rate,) * 4, seeds)
    rows += cells("uniform", "confidence", (rate,) * 4, seeds)
    for claim in (more_steps_do_not_help, random_is_not_worse):
        found = decide(claim, rows)
        assert found.outcome == OPEN and reason in found.reason


def test_a_network_that_has_not_learned_is_left_out():
    rows = cells("uniform", "random", SAME) + cells(
        "uniform", "random", (0.0,) * 4, networks=("transformer",)
    )
    assert "6 trainings (unet [" in decide(more_steps_do_not_help, rows).reason


@pytest.mark.parametrize("random, confidence, not_worse, beats", [
    (0.8, 0.6, HOLDS, FAILS), (0.8, 0.8, HOLDS, FAILS), (0.6, 0.8, FAILS, HOLDS),
])  # fmt: skip
def test_samplers(random, confidence, not_worse, beats):
    def rows(corruption):
        return cells(corruption, "random", (random,) * 4) + cells(
            corruption, "confidence", (confidence,) * 4
        )

    found = decide(random_is_not_worse, rows("uniform"))
    assert found.outcome == not_worse
    assert decide(confidence_beats_random, rows("mask")).outcome == beats
    assert decide(confidence_beats_random, rows("uniform")).outcome == OPEN, "no masks"


def test_samplers_whose_seeds_disagree():
    for corruption, claim in (("uniform", random_is_not_worse), ("mask", confidence_beats_random)):
        rows = cells(corruption, "random", (0.8,) * 4, networks=("unet",))
        for seed, rate in enumerate((0.6, 0.8, 0.9)):
            rows.append(scored((corruption, "unet", "confidence"), seed, (rate,) * 4))
        assert decide(claim, rows).outcome == OPEN


@pytest.mark.parametrize("frechet, outcome", [
    ((5, 4, 3, 4), HOLDS), ((5, 4, 3, 2), FAILS), ((5, 4, 3, 3), OPEN),
])  # fmt: skip
def test_frechet(frechet, outcome):
    rows = []
    for network in ("unet", "uvit"):
        for seed in range(3):
            own = [x + 0.1 * np.sin(seed + 5 * i + len(network)) for i, x in enumerate(frechet)]
            rows.append(scored(("uniform", network, "random"), seed, SAME, own))
    assert decide(steps_are_best_for_frechet, rows).outcome == outcome
    few = [row for row in rows if row["network"] == "unet"]
    assert "needs 5 trainings" in decide(steps_are_best_for_frechet, few).reason


def searched(*exact):
    """What a search tried of two constant weights and one that rises."""
    weights = ([2.0, 2.0], [4.0, 4.0], [1.0, 3.0])
    return [
        {"settings": {"guidance_scale": weight}, "exact": value, "attributes": 1.0}
        for weight, value in zip(weights, exact, strict=True)
    ]


WON, LOST, TIED = searched(0.5, 0.6, 0.7), searched(0.5, 0.8, 0.7), searched(0.5, 0.7, 0.7)


@pytest.mark.parametrize("won, tied, outcome", [
    (12, 0, HOLDS), (4, 0, OPEN), (0, 0, FAILS), (0, 12, OPEN), (2, 9, OPEN),
])  # fmt: skip
def test_rising_guidance(won, tied, outcome):
    """One weight of three rises: by chance it is ahead in a third of what does not tie."""
    rows = cells("mask", "confidence", SAME, seeds=6)
    for i, row in enumerate(rows):
        row["tried"] = WON if i < won else TIED if i < won + tied else LOST
    found = decide(rising_guidance_is_chosen, rows)
    assert found.outcome == outcome
    assert f"ahead in {won} of 12 searches, {tied} tied; by chance in 33 %" in found.reason


def test_rising_guidance_that_was_never_tried_is_not_refuted():
    rows = cells("mask", "confidence", SAME, tried=searched(0.5, 0.6, 0.7)[:2])
    assert decide(rising_guidance_is_chosen, rows).outcome == OPEN
    rows = cells("mask", "confidence", SAME)  # of older comparisons, which kept no searches
    assert decide(rising_guidance_is_chosen, rows).outcome == OPEN


def test_networks_that_say_the_opposite_leave_a_claim_open():
    rows = []
    for network, rate in (("unet", 0.95), ("uvit", 0.45)):
        rows += cells("mask", "random", (0.5,) * 4, networks=(network,))
        rows += cells("mask", "confidence", (rate,) * 4, networks=(network,))
    found = decide(confidence_beats_random, rows)
    assert found.outcome == OPEN and "unet [+0." in found.reason and "uvit [-0." in found.reason


def test_where_all_is_right_held_out_captions_decide():
    rows = cells("uniform", "random", (1.0,) * 4)
    for row in rows:
        some = {c: [i % 2 == 0] for i, c in enumerate(row["exact_of"]["heldout"])}
        row["exact_of"] = row["exact_of"] | {"heldout": some}
        for steps in STEPS:
            kept = {"seen": row["exact_of"]["seen"], "heldout": some}
            row["exact_by_steps"][steps] = packed(kept)
    found = decide(more_steps_do_not_help, rows)
    assert found.outcome == HOLDS and "held-out exact match" in found.reason


def test_a_sentence_per_claim():
    sentences = literature(cells("uniform", "random", SAME))
    assert len(sentences) == len(CLAIMS)
    assert sentences[0].startswith("Paella: about 12 steps are enough, more do not help: holds he")
    assert "MUSE: few steps suffice: undecided" in sentences[3]
    assert all(s.count(HOLDS) + s.count(FAILS) + s.count(OPEN) == 1 for s in sentences)


# --- intervals of pairs --------------------------------------------------------------------------


def test_packing_keeps_every_image():
    exact_of = {"seen": {"a": [True, False], "b": [False], "c": [True]}, "heldout": {"d": [True]}}
    row = make_row() | {"exact_of": {}, "exact_by_steps": {"4": packed(exact_of)}}
    row["exact_of"] = {split: {c: [False] * len(x) for c, x in own.items()}
                       for split, own in exact_of.items()}  # fmt: skip
    assert at_steps(row, "4")["exact_of"] == exact_of
    assert interval([at_steps(row, "8")], "seen_exact") is None


def test_pairs_of_one_training_are_resampled_together():
    """Seeds that differ much, but each gains 0.1: the gain is sure although no score is."""
    pairs = [
        (scored(("uniform", "unet", "random"), i, (x,) * 4),
         scored(("uniform", "unet", "random"), i, (x + 0.1,) * 4))
        for i, x in enumerate((0.2, 0.5, 0.8))
    ]  # fmt: skip
    sure = paired_interval([pairs], "seen_exact")
    before, after = zip(*pairs, strict=True)
    apart = interval(after, "seen_exact", before)
    assert 0.05 < sure.low < 0.1 < sure.high < 0.15
    assert apart.low < 0 < apart.high


def test_groups_weigh_alike():
    one, many = ([(scored(("uniform", "unet", "random"), i, (0.2,) * 4),
                   scored(("uniform", "unet", "random"), i, (0.2 + gain,) * 4))
                  for i in range(count)] for count, gain in ((1, 0.4), (9, 0.0)))  # fmt: skip
    found = paired_interval([one, many], "seen_exact")
    assert found.low < 0.2 < found.high and found.high - found.low < 0.1
    assert paired_interval([[(make_row(), make_row())]], "seen_exact") is None
