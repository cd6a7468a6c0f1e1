"""Kernel distance between two sets of feature vectors, as KID (Binkowski et al. 2018, section 4).

Unlike the Fréchet distance its estimate is unbiased: few images make it noisy, not larger.
"""

from __future__ import annotations

import numpy as np


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The squared maximum mean discrepancy under the kernel (x y / d + 1)^3, unbiased.

    Args:
      first: features float [n, d].
      second: features float [m, d].

    Returns:
      About zero for two sets of one distribution, where it may be negative.

    Raises:
      ValueError: other shapes, fewer than two samples, or values that are not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[1]:
            raise ValueError(
                "features must be [n, d] of one width with at least 2 samples, got shapes "
                f"{list(first.shape)} and {list(second.shape)}"
            )
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite; check the images")
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1.0) ** 3
    among = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    within = among(kernel(first, first)) + among(kernel(second, second))
    return float(within - 2.0 * kernel(first, second).mean())
