"""Fréchet distance between two sets of feature vectors, as in FID (Heusel et al. 2017).

FID's Inception network needs a downloaded file (`features.py`); for the embedded shapes the
features come from `classifier.py`, so those numbers compare with each other only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 4096  # samples in float64 at a time


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean float64 [d], unbiased covariance float64 [d, d] and the number of samples."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Statistics of features [n, d], in float64; beside float32 features little memory is taken.

    Raises:
      ValueError: another rank, fewer than two samples, or values that are not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features must be [n, d] with at least 2 samples, got shape {list(features.shape)}"
        )
    if not np.isfinite(features).all():
        raise ValueError("features hold values that are not finite; check the generated images")
    mean = features.mean(0, dtype=np.float64)
    total = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(features), CHUNK):
        centred = features[start : start + CHUNK].astype(np.float64) - mean[None]
        total += centred.T @ centred
    return FeatureStatistics(mean, total / (len(features) - 1), len(features))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1^1/2 C2 C1^1/2)^1/2), at least 0.

    Only symmetric roots are taken, by eigendecomposition. The last trace is the sum of the
    singular values of C1^1/2 C2^1/2: the same number as from the eigenvalues of the symmetric
    product, without another root of what may be rounding.

    Fewer samples than dimensions make a covariance singular. No inverse is needed and nothing is
    added to the diagonal, so the result is the exact distance of the two fitted Gaussians. But it
    is biased upwards, the more the fewer samples: compare sets of the same size only.

    Raises:
      ValueError: the two have different dimensions.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"cannot compare features of {first.mean.size} and {second.mean.size} dimensions; use "
            "one classifier for both"
        )
    roots = _symmetric_root(first.covariance) @ _symmetric_root(second.covariance)
    overlap = np.linalg.svd(roots, compute_uv=False).sum()
    apart = np.square(first.mean - second.mean).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return float(max(0.0, apart + spread - 2.0 * overlap))


def _symmetric_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    # Below this an eigenvalue is rounding (it may be negative), and its root would not be small.
    floor = values.max() * len(values) * np.finfo(np.float64).eps
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    return (vectors * roots[None]) @ vectors.T
