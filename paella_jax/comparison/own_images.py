"""A comparison on a user's own captioned images, marked by what a feature network finds alike.

A drawn image is right if the true image of its caption is the nearest to it among those of
`AMONG` captions. Chance is one in so many, and a perfect network need not reach one: captions may
leave open what their images show.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task
from paella_jax.comparison.subject import Clean, Marks, Samples, together
from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.encoders.feature_network import FeatureNetwork
from paella_jax.evaluation.captions import TUNING_PARTS
from paella_jax.evaluation.features import load_features
from paella_jax.evaluation.image_measures import is_blank
from paella_jax.evaluation.neighbours import AMONG, centred, ranks_among
from paella_jax.images.write import to_uint8

SHUFFLED = 0  # seed of the order in which images are taken
SOFT = 5  # nearest images among which the true one counts as nearly found


class _Part(NamedTuple):
    """True images of some captions, their features, and a caption's place among them."""

    images: np.ndarray
    features: np.ndarray
    places: dict[str, int]


@dataclass(frozen=True)
class OwnImages:
    """Captioned images of any source that holds some back for validation.

    Attributes:
      data: the trainings' `config.data`.
      measure: the comparison's `config.measure`.
    """

    data: ConfigDict
    measure: ConfigDict

    marked_by = "retrieval"

    def check(self) -> None:
        """Reads the feature network and all captions, so that what is missing ends here."""
        for name in ("images", "tuning_images"):
            if self.measure[name] < AMONG:
                raise ConfigError(
                    f"measure.{name} must be at least {AMONG}, got {self.measure[name]}: an image "
                    "is right if its caption's true one is the nearest of so many"
                )
        self._network  # noqa: B018
        self.samples()

    def prepare(self) -> list[Task]:
        return []

    def samples(self) -> Samples:
        return self._samples

    def search_tokens(self) -> Clean:
        return self._take("validation", self.measure.token_images, for_tuning=True)

    def real_images(self) -> np.ndarray:
        seen = self._samples.seen[1]
        return self._take("train", self.measure.real_images, None, distinct=False, skip=seen)[0]

    def features(self, images: np.ndarray) -> np.ndarray:
        return self._network.extract(_as_uint8(images)).vectors

    def mark(self, images: np.ndarray, captions: Sequence[str]) -> Marks:
        drawn, first, among_soft = self.features(images), *np.zeros((2, len(captions)))
        for part in self._parts:  # which have no caption in common
            rows = [i for i, text in enumerate(captions) if text in part.places]
            own = np.array([part.places[captions[i]] for i in rows], int)
            queries, true = (centred(x, part.features) for x in (drawn[rows], part.features))
            if rows:
                ranks = ranks_among(queries, true, own=own)
                first[rows], among_soft[rows] = ranks.within(1), ranks.within(SOFT)
        right = first == 1.0  # not where another is as near
        blank = np.array([is_blank(image) for image in _as_uint8(images)])
        return Marks(right, float(among_soft.mean()), float((right & ~blank).mean()))

    def true_images(self, captions: Sequence[str]) -> np.ndarray:
        found = {t: part.images[i] for part in self._parts for t, i in part.places.items()}
        return np.stack([found[text] for text in captions])

    def note(self) -> str:
        return f"The features behind the scores are {self._network.name}'s."

    @cached_property
    def _network(self) -> FeatureNetwork:
        try:
            return load_features(self.measure.features, self.measure.features_file)
        except ValueError as error:
            raise ConfigError(f"measure.features and measure.features_file: {error}") from error

    @cached_property
    def _samples(self) -> Samples:
        # A caption has one true image here, so that no two parts have one in common.
        seen = self._take("train", self.measure.images, for_tuning=False)
        heldout = self._take("validation", self.measure.images, for_tuning=False, skip=seen[1])
        tuned = self.measure.tuning_images
        first = self._take("train", tuned, for_tuning=True, skip=heldout[1])
        taken = [*seen[1], *first[1]]
        return Samples(
            seen,
            heldout,
            together(first, self._take("validation", tuned, for_tuning=True, skip=taken)),
            self._take("validation", self.measure.token_images, for_tuning=False),
        )

    @cached_property
    def _parts(self) -> list[_Part]:
        own = self._samples
        return [
            _Part(images, self.features(images), {text: i for i, text in enumerate(captions)})
            for images, captions in (own.seen, own.heldout, own.tuning)
        ]

    def _take(
        self,
        split: str,
        count: int,
        for_tuning: bool | None,
        distinct: bool = True,
        skip: Sequence[str] = (),
    ) -> Clean:
        """Images and captions of a split, or of its part (not) for tuning, in a fixed order."""
        source = self._sources[split]
        images: list[np.ndarray] = []
        captions: list[str] = []
        known = set(skip)
        for place in np.random.default_rng(SHUFFLED).permutation(len(source)).tolist():
            if len(images) == count:
                break
            sample = source[place]
            text = sample["caption"]
            own_part = zlib.crc32(text.encode()) % TUNING_PARTS == 0
            if for_tuning in (None, own_part) and text not in known:
                if distinct:
                    known.add(text)
                captions.append(text)
                images.append(sample["image"])
        if len(images) < count:
            kind = "images with different captions" if distinct else "images"
            raise ConfigError(
                f"the {split} images have {len(images)} {kind} for this part, but {count} are to "
                "be measured: set measure.images, tuning_images, token_images and real_images to "
                "what the data has, or hold more back (data.split)"
            )
        return np.stack(images), captions

    @cached_property
    def _sources(self) -> dict[str, Source]:
        return {split: make_source(self.data, split, 0) for split in ("train", "validation")}


def _as_uint8(images: np.ndarray) -> np.ndarray:
    return images if images.dtype == np.uint8 else to_uint8(images)
