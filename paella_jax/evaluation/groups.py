"""Which of some groups an image is of, by features of images whose groups are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import need

SHRINKAGE = 0.2  # of the covariance, towards a multiple of the identity
FEWEST = 8  # known images of each group


class GroupClassifier(NamedTuple):
    """The nearest centroid, measured by how images of one group differ: a linear classifier.

    Attributes:
      weights: [width, groups].
      offsets: [groups].
    """

    weights: np.ndarray
    offsets: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The group of each image, int [n]; features [n, width]."""
        return (np.asarray(features, np.float64) @ self.weights + self.offsets).argmax(1)


def classify_groups(features: np.ndarray, groups: np.ndarray) -> GroupClassifier:
    """A classifier from images whose groups are known.

    Every group counts alike, however many images it has. The covariance within groups is shrunk
    a little, so that fewer images than features are enough.

    Args:
      features: [n, width].
      groups: int [n], each of 0, 1, ... occurs.

    Raises:
      ValueError: too few images of a group.
    """
    x = np.asarray(features, np.float64)
    counts = np.bincount(groups)
    need(int(counts.min()), FEWEST, "a group of images", "of which a classifier learns it")
    centroids = np.stack([x[groups == g].mean(0) for g in range(len(counts))])
    within = x - centroids[groups]
    covariance = within.T @ within / len(x)
    width = len(covariance)
    scale = max(float(np.trace(covariance)) / width, np.finfo(np.float64).tiny)
    shrunk = (1.0 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(width)
    weights = np.linalg.solve(shrunk, centroids.T)
    return GroupClassifier(weights, -0.5 * (centroids.T * weights).sum(0))
