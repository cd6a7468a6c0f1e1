"""A stream of images -> what all scores of a set need, one batch of images in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from paella_jax.config import UserError
from paella_jax.encoders.clip_judge import ClipJudge
from paella_jax.encoders.feature_network import BATCH, FeatureNetwork, Features
from paella_jax.evaluation.image_measures import is_blank


class ScoreError(UserError, ValueError):
    """Images cannot be scored; the message says what is missing."""


@dataclass(frozen=True)
class Judges:
    """The networks that look at images.

    Attributes:
      network: whose features distances are measured on.
      clip: of the CLIP score.
      pick: of PickScore.
    """

    network: FeatureNetwork
    clip: ClipJudge | None = None
    pick: ClipJudge | None = None


@dataclass(frozen=True)
class Gathered:
    """Of a set of images, in its order.

    Attributes:
      features: of the network.
      blank: bool [count], which have nearly one colour.
      clip: CLIP embeddings [count, width]; None without a judge.
      pick: PickScore's.
    """

    features: Features
    blank: np.ndarray
    clip: np.ndarray | None = None
    pick: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.blank)

    @property
    def vectors(self) -> np.ndarray:
        """The features, float32 [count, width]."""
        return self.features.vectors


def gather(images: Iterable[np.ndarray], judges: Judges) -> Gathered:
    """Looks at uint8 images [H, W, 3] of any sizes once.

    Raises:
      ValueError: there are none.
    """
    parts: list[Gathered] = []
    stream = iter(images)
    while batch := list(islice(stream, BATCH)):
        embed = lambda judge, batch=batch: judge and judge.images.extract(batch).vectors
        parts.append(
            Gathered(
                judges.network.extract(batch),
                np.array([is_blank(image) for image in batch]),
                embed(judges.clip),
                embed(judges.pick),
            )
        )
    if not parts:
        raise ScoreError("there are no images to score")
    join = lambda arrays: None if arrays[0] is None else np.concatenate(arrays)
    return Gathered(
        Features(
            np.concatenate([p.features.vectors for p in parts]),
            join([p.features.logits for p in parts]),
        ),
        np.concatenate([p.blank for p in parts]),
        join([p.clip for p in parts]),
        join([p.pick for p in parts]),
    )


def keeping(
    images: Iterable[np.ndarray], kept: list[np.ndarray], places: Collection[int]
) -> Iterator[Any]:
    """The same stream; its images at some places are put into `kept`."""
    for place, image in enumerate(images):
        if place in places:
            kept.append(image)
        yield image


def plain(value: Any) -> Any:
    """Named tuples as dicts and numpy's numbers as Python's, for JSON."""
    if hasattr(value, "_asdict"):
        return {name: plain(x) for name, x in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value.item() if isinstance(value, np.generic) else value


def as_json(report: Any) -> str:
    """A report with estimates inside -> text."""
    return json.dumps(plain(report), indent=2)


def first(values: Sequence[Any] | np.ndarray, count: int) -> Any:
    """As many of a set, evenly spaced, or all where there are fewer."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    if isinstance(values, np.ndarray):
        return values[places]
    return [values[n] for n in places]
