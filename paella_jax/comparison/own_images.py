"""A comparison on a user's own captioned images, marked by what a feature network finds alike.

A drawn image is right if the true image of its caption is the nearest to it among those of up to
`GROUP` captions. Chance is one in so many, and a perfect network need not reach one: captions may
leave open what their images show.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task
from paella_jax.comparison.subject import Clean, Marks, Samples
from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.loader import Source
from paella_jax.evaluation.captions import TUNING_PARTS
from paella_jax.evaluation.features import FeatureNetwork, load_features
from paella_jax.evaluation.retrieval import GROUP, ranks

BLANK = 0.01  # deviation of an image's values in [0, 1], below which it shows nothing
SHUFFLED = 0  # seed of the order in which images are taken
SOFT = 5  # nearest images among which the true one counts as nearly found


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
        self._network  # noqa: B018
        self.samples()

    def prepare(self) -> list[Task]:
        return []

    def samples(self) -> Samples:
        return self._samples

    def search_tokens(self) -> Clean:
        return self._take("validation", self.measure.token_images, for_tuning=True)

    def real_images(self) -> np.ndarray:
        return self._take("train", self.measure.real_images, None, distinct=False)[0]

    def features(self, images: np.ndarray) -> np.ndarray:
        return self._network(images)

    def mark(self, images: np.ndarray, captions: Sequence[str]) -> Marks:
        found = ranks(self.features(images), self._true_features(captions), GROUP)
        blank = np.asarray(images, np.float32).std((1, 2)).mean(-1) < BLANK
        first = found == 0
        return Marks(first, float((found < SOFT).mean()), float((first & ~blank).mean()))

    def true_images(self, captions: Sequence[str]) -> np.ndarray:
        return np.stack([self._places[text][0] for text in captions])

    def note(self) -> str:
        return f"The features behind the scores are {self._network.name}'s."

    @cached_property
    def _network(self) -> FeatureNetwork:
        return load_features(self.measure.features, self.measure.features_file)

    @cached_property
    def _samples(self) -> Samples:
        seen = self._take("train", self.measure.images, for_tuning=False)
        return Samples(
            seen,
            # A caption has one true image here, so that one of both splits is seen.
            self._take("validation", self.measure.images, None, skip=seen[1]),
            self._take("train", self.measure.tuning_images, for_tuning=True),
            self._take("validation", self.measure.token_images, for_tuning=False),
        )

    @cached_property
    def _places(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Caption -> its true image, and the image's features."""
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for images, captions in (self._samples.tuning, self._samples.heldout, self._samples.seen):
            own = zip(images, self.features(images), strict=True)
            found |= dict(zip(captions, own, strict=True))
        return found

    def _true_features(self, captions: Sequence[str]) -> np.ndarray:
        return np.stack([self._places[text][1] for text in captions])

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
        images, captions = [], []
        known = set(skip)
        for place in np.random.default_rng(SHUFFLED).permutation(len(source)).tolist():
            if len(images) == count:
                break
            sample = source[place]
            text = sample["caption"]
            own_part = zlib.crc32(text.encode()) % TUNING_PARTS == 0
            if for_tuning in (None, own_part) and not (distinct and text in known):
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
