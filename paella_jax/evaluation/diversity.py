"""How much the samples of one prompt differ from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Diversity(NamedTuple):
    """Mean distances between two samples of one prompt; 0 if all samples are alike.

    Where a caption determines the image (the specs without jitter), samples that are right are
    alike and whatever is measured comes from mistakes: read it beside the exact match.
    """

    features: float  # Euclidean, in feature space
    pixels: float  # root mean square over pixels and channels, in [0, 1]


def mean_pairwise_distance(vectors: np.ndarray) -> float:
    """Mean Euclidean distance over all unordered pairs of vectors [m, d], in float64.

    Raises:
      ValueError: another rank or fewer than two vectors.
    """
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(
            f"pairwise distances need vectors [m, d] with m >= 2, got {list(vectors.shape)}"
        )
    first, second = np.triu_indices(len(vectors), k=1)
    return float(np.linalg.norm(vectors[first] - vectors[second], axis=-1).mean())


def diversity(
    images: np.ndarray, features: Callable[[np.ndarray], np.ndarray] | None = None
) -> Diversity:
    """Diversity of several samples for each of several prompts, averaged over the prompts.

    Args:
      images: float [prompts, samples, H, W, 3] in [0, 1], at least 2 samples of each prompt.
      features: images [n, H, W, 3] -> [n, d], such as `ClassifierFeatures.features`; without it
        the distance between features is reported as nan.

    Raises:
      ValueError: another rank, no prompt, or fewer than two samples of a prompt.
    """
    images = np.asarray(images)
    if images.ndim != 5 or len(images) < 1 or images.shape[1] < 2:
        raise ValueError(
            "diversity needs images [prompts, samples, H, W, 3] with at least 2 samples of each "
            f"prompt, got {list(images.shape)}"
        )
    prompts, samples, *size = images.shape
    pixels = images.reshape(prompts, samples, -1)
    scale = np.sqrt(pixels.shape[-1])
    by_features = float("nan")
    if features is not None:
        vectors = features(images.reshape(prompts * samples, *size)).reshape(prompts, samples, -1)
        by_features = _mean_over_prompts(vectors)
    return Diversity(by_features, _mean_over_prompts(pixels) / float(scale))


def _mean_over_prompts(vectors: np.ndarray) -> float:
    return float(np.mean([mean_pairwise_distance(of_prompt) for of_prompt in vectors]))
