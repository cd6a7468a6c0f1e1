"""Distances between two sets of features with their intervals: FID and KID."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import (
    BLOCKS,
    Estimate,
    blocks_of,
    jackknife,
    leave_blocks_out,
    need,
)
from paella_jax.evaluation.frechet import feature_statistics, frechet_distance

LEAST = 2 * BLOCKS  # images of a set that a distance can be measured and its spread told of
SUBSETS, SUBSET = 100, 1000  # Binkowski et al. 2018
# Images; of more, so many are taken, evenly spaced.
MOST_OF_A_KERNEL = 10_000
POOL = 3000  # that the subsets are drawn from
CHUNK = 1024


class KernelDistance(NamedTuple):
    """KID.

    Attributes:
      whole: between all images, with its interval.
      mean: over random subsets, as it is published.
      deviation: over the subsets.
      subset: images in each.
    """

    whole: Estimate
    mean: float
    deviation: float
    subset: int


def frechet_of(first: np.ndarray, second: np.ndarray) -> float:
    """FID of two sets of features [n, d] and [m, d].

    Where a set has fewer images than dimensions its images are the factor of its covariance, so
    that matrices stay as small as the set; the number is that of `frechet_distance`.

    Raises:
      ValueError: as `feature_statistics`.
    """
    if min(len(first), len(second)) > first.shape[-1]:
        return frechet_distance(feature_statistics(first), feature_statistics(second))
    (mean, factor), (other_mean, other) = _factor(first), _factor(second)
    if mean.shape != other_mean.shape:
        raise ValueError(f"cannot compare features of {mean.size} and {other_mean.size} dimensions")
    overlap = np.linalg.svd(factor @ other.T, compute_uv=False).sum()
    apart = np.square(mean - other_mean).sum()
    spread = np.square(factor).sum() + np.square(other).sum()
    return float(max(0.0, apart + spread - 2.0 * overlap))


def _factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [d], and a matrix [k, d] whose square is the covariance, k at most d."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        feature_statistics(x)  # which says what is wrong
    mean = x.mean(0)
    centred = (x - mean[None]) / np.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        centred = np.linalg.qr(centred, mode="r")
    return mean, centred


def frechet_estimate(first: np.ndarray, second: np.ndarray) -> Estimate:
    """FID with its interval.

    The interval is about the chance in these images. It does not hold the bias: with fewer images
    than features FID is larger, and compares with numbers of as many images only.

    Raises:
      ValueError: too few images.
    """
    _check_shapes(first, second)
    return leave_blocks_out(frechet_of, first, second)


def kernel_estimate(
    first: np.ndarray, second: np.ndarray, seed: int = 0, paired: bool = False
) -> KernelDistance:
    """KID with its interval, and with the mean and deviation over random subsets.

    Args:
      first: features [n, d].
      second: features [m, d].
      seed: of the subsets. They have 1000 images, or half of the smaller set.
      paired: image i of one set belongs to image i of the other (its reconstruction, say). Pairs
        are then not compared with each other: being alike they would pull the result below 0.

    Raises:
      ValueError: too few images, or pairs that do not come out even.
    """
    _check_shapes(first, second)
    if paired and len(first) != len(second):
        raise ValueError(f"there are no pairs of {len(first)} and {len(second)} images")
    x, y = (_thinned(np.asarray(f, np.float64), MOST_OF_A_KERNEL) for f in (first, second))
    sums = _block_sums(x, x), _block_sums(y, y), _block_sums(x, y)
    counts = [np.bincount(blocks_of(len(z)), minlength=BLOCKS) for z in (x, y)]
    own = [sums[0] - np.diag(_diagonal(x, x)), sums[1] - np.diag(_diagonal(y, y)), sums[2]]
    kept = lambda block: [i for i in range(BLOCKS) if i != block]
    if paired:
        own[2] = own[2] - np.diag(_diagonal(x, y))
    without = [_from_sums(own, counts, kept(block), paired) for block in range(BLOCKS)]
    whole = jackknife(_from_sums(own, counts, list(range(BLOCKS)), paired), without)
    values = _of_subsets(_thinned(x, POOL), _thinned(y, POOL), seed, paired)
    subset = _subset_size(len(x), len(y))
    return KernelDistance(whole, float(np.mean(values)), float(np.std(values, ddof=1)), subset)


def _subset_size(first: int, second: int) -> int:
    return min(SUBSET, min(first, second) // 2)


def _of_subsets(x: np.ndarray, y: np.ndarray, seed: int, paired: bool) -> list[float]:
    """KID of random subsets, all cut out of the same three kernel matrices."""
    size = _subset_size(len(x), len(y))
    kernels = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    values = []
    for number in range(SUBSETS):
        draw = np.random.default_rng([seed, number])
        i, j = (draw.choice(len(z), size, replace=False) for z in (x, y))
        j = i if paired else j
        of_x, of_y, between = (
            k[np.ix_(*places)] for k, places in zip(kernels, ((i, i), (j, j), (i, j)), strict=True)
        )
        apart = lambda k: (k.sum() - np.trace(k)) / (size * (size - 1))
        across = apart(between) if paired else between.mean()
        values.append(float(apart(of_x) + apart(of_y) - 2.0 * across))
    return values


def check_counts(*counts: int) -> None:
    """Raises ValueError where a set has too few images for a distance."""
    for count in counts:
        need(count, LEAST, "a distance such as FID or KID", "in each of its two sets")


def _check_shapes(*sets: np.ndarray) -> None:
    for features in sets:
        if features.ndim != 2 or features.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(list(x.shape)) for x in sets)
            raise ValueError(f"distances compare features [n, d] of one width, not {shapes}")
    check_counts(*map(len, sets))


def _thinned(features: np.ndarray, most: int) -> np.ndarray:
    places = np.linspace(0, len(features) - 1, min(len(features), most))
    return features[places.round().astype(int)]


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _diagonal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums over a block of the kernel of image i with image i of the other set, [BLOCKS]."""
    values = ((x * y).sum(1) / x.shape[1] + 1.0) ** 3
    return np.bincount(blocks_of(len(x)), weights=values, minlength=BLOCKS)


def _block_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel sums between blocks of two sets, [BLOCKS, BLOCKS]; a stripe of it at a time."""
    member = lambda z: np.eye(BLOCKS)[blocks_of(len(z))]
    total, of_x, of_y = np.zeros((BLOCKS, BLOCKS)), member(x), member(y)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, start + CHUNK)
        total += of_x[rows].T @ (_kernel(x[rows], y) @ of_y)
    return total


def _from_sums(
    sums: list[np.ndarray], counts: list[np.ndarray], kept: list[int], paired: bool
) -> float:
    """The unbiased distance between the images of some blocks."""
    of_x, of_y, between = (float(s[np.ix_(kept, kept)].sum()) for s in sums)
    n, m = (int(c[kept].sum()) for c in counts)
    return of_x / (n * (n - 1)) + of_y / (m * (m - 1)) - 2.0 * between / (n * (m - paired))
