"""Scores of which images lie near which in feature space: precision, recall, copies, retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import Estimate, mean_of, need

NEIGHBOURS = 3
CHUNK = 512
AMONG = 64
SAME = 1e-9  # cosines of equal vectors differ by less
# Squared distances of equal vectors are less than this share of their squared lengths: what is left
# by rounding, also by that of a network's features.
ROUNDING = 1e-11
TYPICAL = 0.01  # the share of real images that lie as near to the training images as a copy


class PrecisionRecall(NamedTuple):
    """Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric".

    Attributes:
      precision: share of the images that lie where real images do.
      recall: share of the real images that lie where the images do.
    """

    precision: Estimate
    recall: Estimate


def precision_recall(
    images: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Features [n, d] against real ones [m, d].

    A set's place in space is all balls around its members that reach their k-th neighbour in it.

    Raises:
      ValueError: too few images for that many neighbours.
    """
    for features in (images, reference):
        need(len(features), neighbours + 2, "precision and recall", f"{neighbours} neighbours")
    return PrecisionRecall(
        mean_of(_inside(images, reference, neighbours)),
        mean_of(_inside(reference, images, neighbours)),
    )


def _inside(points: np.ndarray, members: np.ndarray, neighbours: int) -> np.ndarray:
    """Whether each point lies in a ball around any member, bool [points].

    A point on a ball's surface is inside, whatever rounding makes of it: the balls of equal images,
    as of blank ones, are surface alone.
    """
    radii = np.concatenate(
        [np.partition(d, neighbours, axis=1)[:, neighbours] for d in squared(members, members)]
    )  # the nearest of a member is itself
    lengths = np.square(np.asarray(members, np.float64)).sum(1)
    limits = radii + ROUNDING * (radii + lengths)
    return np.concatenate([(d <= limits[None]).any(1) for d in squared(points, members)])


def squared(first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Squared Euclidean distances, stripes of [up to CHUNK, len(second)] in float64.

    Those of vectors that differ by rounding alone are 0.
    """
    y = np.asarray(second, np.float64)
    length = np.square(y).sum(1)
    for start in range(0, len(first), CHUNK):
        x = np.asarray(first[start : start + CHUNK], np.float64)
        lengths = np.square(x).sum(1)[:, None] + length[None]
        distances = lengths - 2.0 * x @ y.T
        yield np.where(distances > ROUNDING * lengths, distances, 0.0)


class Copying(NamedTuple):
    """How near images come to the training images.

    Attributes:
      nearest: of every image, its nearest training image, int [n].
      distance: to it, float [n].
      share: of the images that are nearer to a training image than 99 % of real images which
        training never saw; one in a hundred where nothing was copied.
    """

    nearest: np.ndarray
    distance: np.ndarray
    share: Estimate


def copying(images: np.ndarray, training: np.ndarray, unseen: np.ndarray) -> Copying:
    """Features of drawn, training and unseen real images, [.., d].

    Raises:
      ValueError: too few unseen images to say what is usual.
    """
    need(len(unseen), AMONG, "the search for copies", "real images that training never saw")
    nearest, distance = nearest_of(images, training)
    usual = float(np.quantile(nearest_of(unseen, training)[1], TYPICAL))
    return Copying(nearest, distance, mean_of(distance < usual))


def nearest_of(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` to every image, and its distance."""
    stripes = [(d.argmin(1), np.sqrt(d.min(1))) for d in squared(images, others)]
    places, distances = zip(*stripes, strict=True)
    return np.concatenate(places), np.concatenate(distances)


class Retrieval(NamedTuple):
    """How often the right one of 64 is the nearest, and among the five nearest."""

    first: Estimate
    among_five: Estimate
    among: int


def retrieval(
    queries: np.ndarray, candidates: np.ndarray, among: int = AMONG, seed: int = 0
) -> Retrieval:
    """Whether query i finds candidate i among itself and others, by cosine.

    Of images, features should be centred before (`centred`): else what all have in common
    decides. Which of candidates equal to the right one comes first is left to chance.

    Args:
      queries: [n, d].
      candidates: [n, d], the right ones in the queries' order.
      among: candidates of each query; the others are drawn from all.
      seed: of that draw.

    Raises:
      ValueError: fewer candidates than that.
    """
    ranks = ranks_among(queries, candidates, among, seed)
    return Retrieval(mean_of(ranks.within(1)), mean_of(ranks.within(5)), among)


class Ranks(NamedTuple):
    """Of each query, int [n]: candidates nearer than its own one, and others as near."""

    nearer: np.ndarray
    equal: np.ndarray

    def within(self, count: int) -> np.ndarray:
        """The chance that its own one is among the `count` nearest, float64 [n]."""
        return np.clip((count - self.nearer) / (self.equal + 1), 0.0, 1.0)


def ranks_among(
    queries: np.ndarray,
    candidates: np.ndarray,
    among: int = AMONG,
    seed: int = 0,
    own: np.ndarray | None = None,
) -> Ranks:
    """Where a query's own candidate is among them, by cosine; as `retrieval`.

    Args:
      queries: [n, d].
      candidates: [m, d].
      among: candidates of each query.
      seed: of the draw of the others, which depends on the own one alone.
      own: place of each query's own candidate, int [n]; None where they are in the same order.
    """
    need(len(candidates), among, "retrieval", f"one is to be found among {among}")
    q, c = (_unit(x) for x in (queries, candidates))
    ranks = Ranks(np.empty(len(q), int), np.empty(len(q), int))
    places = np.arange(len(q)) if own is None else own
    for row, place in enumerate(places.tolist()):
        draw = np.random.default_rng([seed, place])
        others = draw.choice(len(c) - 1, among - 1, replace=False)
        others += others >= place
        likeness, right = c[others] @ q[row], c[place] @ q[row]
        ranks.nearer[row] = (likeness > right + SAME).sum()
        ranks.equal[row] = (np.abs(likeness - right) <= SAME).sum()
    return ranks


def centred(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Features less the mean of the reference's."""
    return features - np.asarray(reference, np.float64).mean(0)[None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    x = np.asarray(vectors, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
