"""A score with how sure it is: a jackknife over blocks of images.

A tenth of the images of every set is left out in turn. Unlike a bootstrap, which draws some images
twice, this keeps the bias that a small set gives a Fréchet distance as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BLOCKS = 10
SIGMAS = 1.96  # deviations to each side of a 95 % interval


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def show(self, digits: int = 3) -> str:
        """As "0.912 [0.853, 0.971]"."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def around(value: float, deviation: float) -> Estimate:
    """The interval of a value with a standard error."""
    return Estimate(value, value - SIGMAS * deviation, value + SIGMAS * deviation)


def blocks_of(count: int) -> np.ndarray:
    """The block of every image, int [count]: neighbours are in different ones."""
    return np.arange(count) % BLOCKS


def jackknife(value: float, without: Sequence[float]) -> Estimate:
    """From a statistic of all images and the same without each block."""
    left_out = np.asarray(without, np.float64)
    spread = np.square(left_out - left_out.mean()).sum()
    return around(value, float(np.sqrt((len(left_out) - 1) / len(left_out) * spread)))


def leave_blocks_out(statistic: Callable[..., float], *sets: np.ndarray) -> Estimate:
    """A statistic of sets [count, ...], recomputed without each block of all of them."""
    blocks = [blocks_of(len(x)) for x in sets]
    without = [
        statistic(*(x[own != block] for x, own in zip(sets, blocks, strict=True)))
        for block in range(BLOCKS)
    ]
    return jackknife(statistic(*sets), without)


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of a number per image.

    Raises:
      ValueError: fewer than two.
    """
    numbers = np.asarray(values, np.float64).reshape(-1)
    if len(numbers) < 2:
        raise ValueError(
            f"a mean with an interval needs at least 2 images, there is {len(numbers)}"
        )
    return around(float(numbers.mean()), float(numbers.std(ddof=1) / np.sqrt(len(numbers))))


def bootstrap(values: Sequence[float] | np.ndarray, draws: int = 1000, seed: int = 0) -> Estimate:
    """The mean of a number per image; its interval holds 95 % of the means of redrawn images.

    Unlike that of `mean_of` it stays within the values' range, as of a share near 1.

    Raises:
      ValueError: fewer than two.
    """
    value = mean_of(values).value
    numbers = np.asarray(values, np.float64).reshape(-1)
    draw = np.random.default_rng(seed)
    count = len(numbers)
    means = [numbers[draw.integers(0, count, count)].mean() for _ in range(draws)]
    return Estimate(value, *(float(x) for x in np.quantile(means, (0.025, 0.975))))


def need(count: int, least: int, what: str, why: str = "") -> None:
    """Raises ValueError where a score has fewer images than it needs."""
    if count < least:
        raise ValueError(
            f"{what} needs at least {least} images{f' ({why})' if why else ''}, there are {count}: "
            "draw or give more"
        )
