"""Sources and requests of image tasks, of the embedded data: scenes, and their images and captions.

Every pair is made of validation scenes, by a seed; requests are scenes that the data could have
drawn, with the number of objects and the colour-shape pairs of the training.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np

from paella_jax.data.shapes import Scene, ShapesSpec, sample_scene
from paella_jax.data.shapes_captions import caption
from paella_jax.data.shapes_render import render

TRIES = 10_000
Make = Callable[[Scene, Scene, ShapesSpec, random.Random], Scene | None]


class Pair(NamedTuple):
    """What a task starts from, and what it is asked for."""

    source: Scene
    request: Scene


def image_of(scene: Scene, spec: ShapesSpec) -> np.ndarray:
    """float32 [height, width, 3] in [0, 1]."""
    return render(scene, spec).astype(np.float32) / 255.0


def text_of(scene: Scene, spec: ShapesSpec) -> str:
    """The scene's caption."""
    return caption(scene, spec)


def pairs(spec: ShapesSpec, number: int, seed: int, make: Make) -> list[Pair]:
    """Pairs whose request is made of a source and of another scene, both of the validation split.

    Raises:
      ValueError: the data has no such pairs.
    """
    rng = random.Random(seed)

    def found() -> Pair | None:
        source, other = (sample_scene(spec, "validation", seed, i) for i in (next(at), next(at)))
        request = make(source.without_jitter(), other.without_jitter(), spec, rng)
        fits = request is not None and is_drawn(request, spec) and request != source
        return Pair(source.without_jitter(), request) if fits and request else None

    at = count()
    made = (pair for pair in (found() for _ in range(TRIES)) if pair)
    chosen = list(islice(made, number))
    if len(chosen) < number:
        raise ValueError(f"the data {spec.name!r} has no {number} pairs for this task")
    return chosen


def is_drawn(scene: Scene, spec: ShapesSpec) -> bool:
    """Whether training has such scenes."""
    number = spec.min_objects <= len(scene.objects) <= spec.max_objects
    return number and not any((o.color, o.shape) in spec.heldout for o in scene.objects)


# --- requests


def another(source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random) -> Scene:
    """An image of its own: the other scene."""
    return other


def same_background(
    source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random
) -> Scene | None:
    """The other scene on the source's background, where they differ in both halves."""
    half = spec.lattice // 2
    part = lambda scene, left: [o for o in scene.objects if (o.column < half) == left]
    alike = any(part(source, left) == part(other, left) for left in (True, False))
    return None if alike else Scene(source.background, other.objects)


def another_shape(
    source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random
) -> Scene | None:
    """The other scene, where its first object's shape is none of the source's."""
    shape = other.objects[0].shape
    return None if shape in [o.shape for o in source.objects] else other


def one_change(source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random) -> Scene:
    """The source with another background, or one of its objects with another attribute."""
    words = {"color": spec.colors, "shape": spec.shapes, "size": spec.sizes}
    kinds = ["background", *(name for name, known in words.items() if len(known) > 1)]
    kind = rng.choice(kinds)
    if kind == "background":
        rest = [name for name in spec.backgrounds if name != source.background]
        return Scene(rng.choice(rest), source.objects)
    objects, at = list(source.objects), rng.randrange(len(source.objects))
    rest = [word for word in words[kind] if word != getattr(objects[at], kind)]
    change: dict[str, Any] = {kind: rng.choice(rest)}
    objects[at] = replace(objects[at], **change)
    return Scene(source.background, tuple(objects))


def right_half(source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random) -> Scene | None:
    """The source with the other scene's objects in its right half, which has none else."""
    half = spec.lattice // 2
    mine = [o for o in source.objects if o.column < half]
    theirs = [o for o in other.objects if o.column >= half]
    return Scene(source.background, (*mine, *theirs)) if theirs else None


def next_window(source: Scene, other: Scene, spec: ShapesSpec, rng: random.Random) -> Scene | None:
    """What a window shows that lies half over the source's right half and half beyond it."""
    if spec.lattice % 2:
        return None  # half a window is no number of tiles
    half = spec.lattice // 2
    seen = [replace(o, column=o.column - half) for o in source.objects if o.column >= half]
    theirs = [o for o in other.objects if o.column >= half]
    return Scene(source.background, (*seen, *theirs)) if theirs else None
