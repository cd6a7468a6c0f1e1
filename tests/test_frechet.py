"""The Fréchet distance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from paella_jax.evaluation.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
)


def gaussian(mean, covariance):
    return FeatureStatistics(np.asarray(mean, float), np.asarray(covariance, float), 100)


def draw(count, width, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(count, width)) * scale


def test_one_dimension():
    # N(1, 4) and N(4, 25): (4 - 1)^2 + (5 - 2)^2
    assert frechet_distance(gaussian([1], [[4]]), gaussian([4], [[25]])) == pytest.approx(18.0)


def test_commuting_covariances():
    basis, _ = np.linalg.qr(draw(6, 6))
    first, second = np.array([1, 2, 3, 4, 5, 0.0]), np.array([9, 1, 0.0, 2, 7, 3])
    rotated = [basis @ np.diag(values) @ basis.T for values in (first, second)]
    expected = np.square(np.sqrt(first) - np.sqrt(second)).sum() + 6 * 0.25
    distance = frechet_distance(gaussian([0] * 6, rotated[0]), gaussian([0.5] * 6, rotated[1]))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_covariances_that_do_not_commute():
    # In two dimensions tr(M^1/2) = sqrt(tr M + 2 sqrt(det M)), with M = C1 C2.
    first, second = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    assert not np.allclose(first @ second, second @ first)
    product = first @ second
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * overlap
    got = frechet_distance(gaussian([0, 0], first), gaussian([0, 0], second))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [5, 500])
def test_identical_sets_are_at_no_distance(count):
    """Also with fewer samples than dimensions, where the covariance is singular."""
    statistics = feature_statistics(draw(count, 64, scale=30.0))
    assert 0.0 <= frechet_distance(statistics, statistics) < 1e-10 * np.trace(statistics.covariance)


def test_moving_every_sample_costs_the_squared_distance():
    few = draw(5, 64)
    step = np.linspace(0, 1, 64)
    moved = frechet_distance(feature_statistics(few), feature_statistics(few + step[None]))
    assert moved == pytest.approx(np.square(step).sum(), rel=1e-10)


def test_symmetric_and_larger_for_more_different_sets():
    base, near, far = (
        feature_statistics(draw(300, 8, seed, scale)) for seed, scale in ((0, 1), (1, 1), (2, 3))
    )
    assert frechet_distance(base, near) == pytest.approx(frechet_distance(near, base), rel=1e-9)
    assert 0 < frechet_distance(base, near) < 0.2 * frechet_distance(base, far)


def test_statistics_are_numpys():
    features = draw(50, 4).astype(np.float32)
    statistics = feature_statistics(features)
    assert statistics.count == 50 and statistics.covariance.dtype == np.float64
    np.testing.assert_allclose(statistics.covariance, np.cov(features.T.astype(float)), rtol=1e-12)


@pytest.mark.parametrize(
    "features, message",
    [
        (np.zeros((1, 4)), "at least 2 samples"),
        (np.zeros(4), r"\[n, d\]"),
        (np.full((3, 4), np.nan), "not finite"),
    ],
)
def test_bad_features_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        feature_statistics(features)


def test_different_widths_are_refused():
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        frechet_distance(feature_statistics(draw(9, 4)), feature_statistics(draw(9, 5)))
