"""Intervals of a comparison's exact matches, by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from test_comparison_report import make_row, one

from paella_jax.comparison.intervals import interval
from paella_jax.comparison.report import markdown
from paella_jax.comparison.verdict import verdict

MASK = ("mask", "unet", "random")


def rows_of(right, cell=("uniform", "unet", "random")):
    """One row per seed: right [seeds, captions, images] bool."""
    right = np.asarray(right, bool)
    made = []
    for seed, own in enumerate(right):
        by_caption = {f"caption {i}": images.tolist() for i, images in enumerate(own)}
        made.append(
            make_row(cell, seed, exact=float(own.mean()))
            | {"exact_of": {"seen": by_caption, "heldout": by_caption}}
        )
    return made


def draw(rate, captions, images=1, seeds=1, key=0):
    return np.random.default_rng(key).random((seeds, captions, images)) < rate


def width(found):
    return found.high - found.low


def test_the_width_is_that_of_a_binomial():
    found = interval(rows_of(draw(0.5, 400)), "seen_exact")
    assert width(found) == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize("rate, expected", [(1.0, (0.97, 1.0)), (0.0, (0.0, 0.03))])
def test_all_that_is_seen_right_need_not_be_all(rate, expected):
    assert interval(rows_of(draw(rate, 100, seeds=3)), "seen_exact") == pytest.approx(expected)


def test_images_of_one_caption_are_one_observation():
    """Sixteen images of 25 captions, which are right or wrong together, are 25, not 400."""
    together = np.repeat(draw(0.5, 25), 16, axis=2)
    few = interval(rows_of(together), "seen_exact")
    many = interval(rows_of(draw(0.5, 25, 16)), "seen_exact")
    assert width(few) > 3 * width(many)


def test_seeds_that_differ_widen_it():
    same = interval(rows_of(np.repeat(draw(0.5, 400), 3, axis=0)), "seen_exact")
    differ = interval(rows_of(np.stack([draw(p, 400)[0] for p in (0.2, 0.5, 0.8)])), "seen_exact")
    assert width(differ) > 3 * width(same)


def test_a_difference_is_on_the_same_captions():
    """Both fail on the same hard half: the difference is sure, the two scores are not."""
    hard = draw(0.5, 60)
    better, worse = rows_of(hard | draw(0.3, 60, key=1), MASK), rows_of(hard)
    difference = interval(better, "seen_exact", worse)
    assert difference.low > 0
    assert width(difference) < width(interval(worse, "seen_exact"))


def test_the_verdict_goes_by_the_interval():
    clear = verdict([*rows_of(draw(0.9, 200, seeds=3), MASK), *rows_of(draw(0.5, 200, seeds=3))])
    assert one(clear, "Seen exact match at 12 steps").endswith("].")
    close = verdict([*rows_of(draw(0.52, 50), MASK), *rows_of(draw(0.5, 50, key=3))])
    assert one(close, "Seen exact match at 12 steps").endswith("so undecided.")
    page = markdown([*rows_of(draw(0.9, 200, seeds=2), MASK), *rows_of(draw(0.5, 200, seeds=2))])
    assert "95 % intervals at 12 steps" in page


@pytest.mark.parametrize("seeds", [3, 5])
def test_they_hold_the_truth_as_often_as_they_say(seeds):
    """Trainings that differ: with three, resampled seeds held it in 75 of 100 comparisons."""
    chance, held, tries = np.random.default_rng(seeds), 0, 200
    for _ in range(tries):
        rates = np.clip(chance.normal(0.5, 0.1, seeds), 0, 1)[:, None, None]
        found = interval(rows_of(chance.random((seeds, 60, 1)) < rates), "seen_exact")
        held += found.low <= 0.5 <= found.high
    assert held / tries >= 0.91


def test_the_luck_of_single_images_counts_once():
    """Seeds of equal means have each its own captions right: captions alone tell nothing."""
    half = np.arange(400) < 200
    right = np.stack([np.random.default_rng(key).permutation(half) for key in range(5)])
    twice = 2 * 1.96 * np.sqrt(0.25 / (5 * 400))  # what it would be with the captions' part whole
    assert width(interval(rows_of(right[..., None]), "seen_exact")) < 0.6 * twice


def test_the_same_for_a_factor_over_networks_and_samplers():
    """What two samplers draw from one training is one observation, not two."""
    rows = []
    for network, sampler in product(("unet", "uvit"), ("random", "confidence")):
        for corruption, rate in (("uniform", 0.3), ("mask", 0.8)):
            own = draw(rate, 100, seeds=3, key=len(network))
            rows += rows_of(own, (corruption, network, sampler))
    effect = one(verdict(rows), "Corruption mask instead of uniform")
    both = effect.split("seen exact match +0.")[1].split(" (better in 6 of 6)")[0]
    single = verdict([row for row in rows if row["sampler"] == "random"])
    alone = one(single, "Corruption mask instead of uniform")
    assert both in alone, "twice the same images tell no more"


def test_rows_without_single_images_have_none():
    assert interval([make_row()], "seen_exact") is None
    assert interval(rows_of(draw(0.5, 20)), "frechet") is None
