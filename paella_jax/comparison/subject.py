"""What a comparison draws: captions with their true images, and how a drawn image is marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from paella_jax.comparison.claims import Task
from paella_jax.evaluation.tuning import Mark

Clean = tuple[np.ndarray, list[str]]  # images uint8 and their captions


class Marks(NamedTuple):
    """What drawn images are worth.

    Attributes:
      exact: bool [images], whether an image is right.
      attributes: a softer fraction: how much of a caption is right.
      clean: fraction of images that are right and look it; nan where that is not known.
    """

    exact: np.ndarray
    attributes: float
    clean: float


class Samples(NamedTuple):
    """The parts that nothing but what their names say is done with.

    Attributes:
      seen: of the kind that is trained on; scored.
      heldout: of the kind that is never trained on; scored.
      tuning: as seen and held-out, half each; for choosing the sampler's settings.
      tokens: not trained on; their corrupted tokens are scored.
    """

    seen: Clean
    heldout: Clean
    tuning: Clean
    tokens: Clean


class Subject(Protocol):
    """What all cells are drawn and measured on."""

    @property
    def marked_by(self) -> str:
        """What marks images: a key of `TITLES` in comparison/rows.py."""

    def prepare(self) -> list[Task]:
        """What is done once before anything is measured."""

    def samples(self) -> Samples:
        """Raises ConfigError where the data has too few."""

    def search_tokens(self) -> Clean:
        """Images and captions for choosing learning rates; none is measured."""

    def real_images(self) -> np.ndarray:
        """uint8 [measure.real_images, H, W, 3], that distances are measured from.

        Of the kind of the seen captions' images, and none of those.
        """

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 or float images [count, H, W, 3] -> float [count, features]."""

    def mark(self, images: np.ndarray, captions: Sequence[str]) -> Marks:
        """Of images drawn for captions of `samples`."""

    def true_images(self, captions: Sequence[str]) -> np.ndarray:
        """uint8 [captions, H, W, 3]."""

    def note(self) -> str:
        """What is behind the features."""


def together(*parts: Clean) -> Clean:
    """Several parts as one."""
    return np.concatenate([images for images, _ in parts]), [c for _, own in parts for c in own]


def marker(subject: Subject, captions: Sequence[str]) -> Mark:
    """Images of some captions -> the fraction that is exact, and of attributes."""

    def mark(images: np.ndarray) -> tuple[float, float]:
        marks = subject.mark(images, captions)
        return float(np.mean(marks.exact)), marks.attributes

    return mark
