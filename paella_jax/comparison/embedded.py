"""A comparison on the embedded captioned shapes, which are read exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task
from paella_jax.comparison.subject import Clean, Marks, Samples, together
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_captions import parse_caption
from paella_jax.data.shapes_render import render
from paella_jax.evaluation.captions import check_lengths, scored_samples
from paella_jax.evaluation.classifier import ClassifierFeatures, load_or_train_classifier
from paella_jax.evaluation.oracle import score_images, summary
from paella_jax.evaluation.tuning import mean_attributes


@dataclass(frozen=True)
class EmbeddedShapes:
    """The embedded data, whose images are read exactly (evaluation/oracle.py).

    Attributes:
      spec: its variant.
      measure: the comparison's `config.measure`.
      file: of the classifier behind the features.
    """

    spec: str
    measure: ConfigDict
    file: Path

    marked_by = "oracle"

    def check(self, text: ConfigDict) -> None:
        """Raises ConfigError for captions that are too few, or too long for a run's `text`."""
        found = self.samples()
        self.real_images()
        check_lengths([*found.seen[1], *found.heldout[1], *found.tuning[1]], text)

    def prepare(self) -> list[Task]:
        return [Task("classifier", self.file.is_file, lambda: self._classifier)]

    def samples(self) -> Samples:
        draw = partial(scored_samples, self.spec, distinct=self.measure.distinct)
        tuned = self.measure.tuning_images
        return Samples(
            draw("validation", self.measure.images, for_tuning=False),
            draw("heldout", self.measure.images, for_tuning=False),
            together(*(draw(s, tuned, for_tuning=True) for s in ("validation", "heldout"))),
            scored_samples(self.spec, "validation", self.measure.token_images, for_tuning=False),
        )

    def search_tokens(self) -> Clean:
        return scored_samples(self.spec, "validation", self.measure.token_images, for_tuning=True)

    def real_images(self) -> np.ndarray:
        # Of captions like the measured ones, but others: an image that is among the real ones would
        # be at no distance, and a mix of scenes that differs would reward mistakes.
        count, real = self.measure.images, self.measure.real_images
        draw = partial(scored_samples, self.spec, "validation", for_tuning=False)
        return draw(count + real, distinct=self.measure.distinct)[0][count:]

    def features(self, images: np.ndarray) -> np.ndarray:
        return self._classifier.features(images)

    def mark(self, images: np.ndarray, captions: Sequence[str]) -> Marks:
        scores = score_images(images, captions, self.spec)
        found = summary(scores)
        return Marks(np.asarray(scores.exact_images), mean_attributes(found), found["clean"])

    def true_images(self, captions: Sequence[str]) -> np.ndarray:
        known = get_spec(self.spec)
        return np.stack([render(parse_caption(caption, known), known) for caption in captions])

    def note(self) -> str:
        seen = self._classifier.accuracy.get("validation", {}).get("exact")
        reads = f"{seen:.1%} of real images exactly" if seen is not None else "real images"
        return f"The classifier behind the distances and diversity reads {reads}."

    @cached_property
    def _classifier(self) -> ClassifierFeatures:
        return load_or_train_classifier(
            self.file, self.spec, num_steps=self.measure.classifier_steps
        )
