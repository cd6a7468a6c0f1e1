"""Choosing a sampler's settings for one run, on captions that nothing is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.sampling.schedule import first_and_last

ATTRIBUTES = ("color", "shape", "size", "position")
Settings = dict[str, Any]
# Images -> the fraction that is exact, and of attributes that are right.
Mark = Callable[[np.ndarray], tuple[float, float]]


class Tried(NamedTuple):
    """Settings with the fraction of exact images and of right attributes that they gave."""

    settings: Settings
    exact: float
    attributes: float


def mean_attributes(scores: Mapping[str, float]) -> float:
    """Of an oracle's summary: the mean of what a caption says of its objects."""
    return float(np.mean([scores[name] for name in ATTRIBUTES]))


def tried_settings(measure: ConfigDict, corruption: str, sampler: str) -> list[Settings]:
    """Every combination of the settings that a cell's sampler has, as (first, last) pairs."""
    tried: dict[str, Any] = {
        "temperature": measure.temperature,
        "guidance_scale": [first_and_last("guidance", weight) for weight in measure.guidance],
    }
    if (corruption, sampler) == ("mask", "confidence"):
        tried["choice_temperature"] = measure.choice_temperature
    return combinations(tried)


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the values of some settings."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def try_all(
    settings: Sequence[Settings],
    draw: Callable[..., np.ndarray],
    mark: Mark,
) -> list[Tried]:
    """Draws captions with each of some settings and marks the images.

    Args:
      settings: what to try.
      draw: settings as keywords -> images of the captions for tuning.
      mark: of such images.
    """
    return [Tried(own, *mark(draw(**own))) for own in settings]


def oracle_mark(captions: Sequence[str], spec: str) -> Mark:
    """Marks images of captions of the embedded data."""

    def mark(images: np.ndarray) -> tuple[float, float]:
        scores = summary(score_images(images, captions, spec))
        return scores["exact"], mean_attributes(scores)

    return mark


def best(tried: Sequence[Tried]) -> Tried:
    """The one with the most exact images.

    Mean attributes decide between equal ones, then it is no settings at all (which keeps the run's
    own), then the smaller guidance at the end.
    """

    def rank(one: Tried) -> tuple[float, ...]:
        weights = [value for name, value in one.settings.items() if "guidance" in name]
        ends = [first_and_last("guidance", weight)[1] for weight in weights]
        return one.exact, one.attributes, not one.settings, -max(ends, default=0.0)

    return max(tried, key=rank)
