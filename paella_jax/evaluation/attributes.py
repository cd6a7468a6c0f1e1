"""What of a source and what of a request an image shows, attribute by attribute.

A scene is its background and, in every tile, a colour, a shape and a size, or nothing. Image tasks
stand between a source and a request: what counts are the attributes in which the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from paella_jax.data.shapes import Scene
from paella_jax.evaluation.oracle import ATTRIBUTES

KINDS = ("background", "position", *ATTRIBUTES)
Place = tuple[int, int]


class Shares(NamedTuple):
    """Of the attributes in which sources and requests differ, the share that shows each.

    Attributes:
      kept: has the source's value.
      met: has the request's.
      number: of these attributes.
    """

    kept: float
    met: float
    number: int


def attributes(scene: Scene, places: Sequence[Place]) -> dict[Any, str | None]:
    """Values of "background" and of (tile, attribute) for each of `places`; None: it is empty."""
    objects = {(o.row, o.column): o for o in scene.objects}
    values: dict[Any, str | None] = {"background": scene.background}
    for place in places:
        there = objects.get(place)
        for name in ATTRIBUTES:
            values[place, name] = getattr(there, name) if there else None
    return values


def tiles(lattice: int) -> list[Place]:
    """(row, column) of every tile."""
    return [(row, column) for row in range(lattice) for column in range(lattice)]


def kept_and_met(
    read: Sequence[Scene],
    sources: Sequence[Scene],
    requests: Sequence[Scene],
    places: Sequence[Place],
) -> Shares:
    """Compares what images show with the source and the request of each, in some tiles.

    Raises:
      ValueError: different numbers, or sources and requests that are the same.
    """
    kept = met = count = 0
    for shown, source, request in zip(read, sources, requests, strict=True):
        values, before, wanted = (attributes(s, places) for s in (shown, source, request))
        differing = [key for key in values if before[key] != wanted[key]]
        kept += sum(values[key] == before[key] for key in differing)
        met += sum(values[key] == wanted[key] for key in differing)
        count += len(differing)
    if not count:
        raise ValueError("the sources and their requests are the same; nothing can be compared")
    return Shares(kept / count, met / count, count)


def unchanged(
    read: Sequence[Scene],
    sources: Sequence[Scene],
    requests: Sequence[Scene],
    places: Sequence[Place],
) -> float:
    """Of the attributes in which sources and requests agree, the share that images show.

    Tiles that are empty in both and in the image do not count.

    Raises:
      ValueError: different numbers, or none that agree.
    """
    right = count = 0
    for shown, source, request in zip(read, sources, requests, strict=True):
        values, before, wanted = (attributes(s, places) for s in (shown, source, request))
        for key, value in values.items():
            if before[key] == wanted[key] and (before[key], value) != (None, None):
                right += value == before[key]
                count += 1
    if not count:
        raise ValueError("the sources and their requests have nothing in common")
    return right / count


def shared_by_kind(read: Sequence[Scene], others: Sequence[Scene]) -> dict[str, float]:
    """How much images have in common with other scenes, by kind, each in [0, 1].

    Backgrounds and positions (the set of tiles that hold something) are equal or not. Colours,
    shapes and sizes are those of all objects, wherever they are: the share of the larger of the two
    lists that is in both.

    Raises:
      ValueError: different numbers, or none.
    """
    pairs = list(zip(read, others, strict=True))
    if not pairs:
        raise ValueError("there are no images to compare")
    where = lambda scene: {(o.row, o.column) for o in scene.objects}
    shares = {
        "background": [float(a.background == b.background) for a, b in pairs],
        "position": [float(where(a) == where(b)) for a, b in pairs],
    }
    for name in ATTRIBUTES:
        words = lambda scene, name=name: [getattr(o, name) for o in scene.objects]
        shares[name] = [_in_common(words(a), words(b)) for a, b in pairs]
    return {kind: sum(values) / len(values) for kind, values in shares.items()}


def _in_common(first: list[str], second: list[str]) -> float:
    left, found = list(second), 0
    for word in first:
        if word in left:
            left.remove(word)
            found += 1
    return found / max(len(first), len(second), 1)
