"""The kernel distance: its formula, its lack of bias, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from paella_jax.evaluation.kernel_distance import kernel_distance


def normal(seed, count, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, 5)) + shift


def test_formula_by_loops():
    x, y = normal(0, 4), normal(1, 3)
    k = lambda a, b: (a @ b / 5 + 1) ** 3
    pairs = lambda z: [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    expected = np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_unbiased_where_nothing_differs_and_large_where_something_does():
    same = [kernel_distance(normal(2 * n, 20), normal(2 * n + 1, 20)) for n in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200) and min(same) < 0
    assert kernel_distance(normal(0, 20), normal(1, 20, 1.0)) > 10 * np.std(same)


@pytest.mark.parametrize(
    "first, second, message",
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 samples"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "of one width"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "not finite"),
    ],
)
def test_refusals(first, second, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(first, second)
