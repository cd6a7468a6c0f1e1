"""Scores of the image tasks on the embedded data, read back by the oracle.

Each task is drawn for many pairs of a source and a request (task_pairs.py) with the settings that a
user gets, and its images are read: how much of the source they keep, how much of the request they
meet, by strength or weight, and how many are clean, that is look like what is read of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from paella_jax.data.shapes import Scene, ShapesSpec, get_spec
from paella_jax.evaluation import attributes as of
from paella_jax.evaluation.oracle import CLEAN, farthest_tile, read_scenes
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.presets import edit_settings
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.reports import task_pairs
from paella_jax.reports.task_pairs import Pair, image_of, text_of

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
FRACTIONS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """A run with what all scores need.

    Attributes:
      pipe: the run.
      spec: of its data.
      count: pairs per task.
      seed: of pairs and images.
    """

    pipe: TokenPipeline
    spec: ShapesSpec
    count: int
    seed: int

    def pairs(self, make: task_pairs.Make) -> list[Pair]:
        """`count` pairs of a kind."""
        return task_pairs.pairs(self.spec, self.count, self.seed, make)

    def draw(self, pairs: Sequence[Pair], task: Callable[..., Any]) -> np.ndarray:
        """The first image of `task(image, pair, seed=...)` for every pair."""
        images = []
        for number, pair in enumerate(pairs):
            drawn = task(image_of(pair.source, self.spec), pair, seed=self.seed + number)
            images.append(drawn.images[0])
        return np.stack(images)

    def row(
        self,
        name: str,
        setting: str,
        images: np.ndarray,
        pairs: Sequence[Pair],
        places: Sequence[of.Place] | None = None,
    ) -> Row:
        """What images of pairs show: of the source, of the request, and how many are clean."""
        read = read_scenes(images, self.spec)
        everywhere = of.tiles(self.spec.lattice)
        sources, requests = zip(*pairs, strict=True)
        shares = of.kept_and_met(read, sources, requests, places or everywhere)
        return {
            "task": name,
            "setting": setting,
            "kept": shares.kept,
            "met": shares.met,
            "clean": self.clean(images, read),
        }

    def clean(self, images: np.ndarray, read: Sequence[Scene]) -> float:
        """The share of images whose every tile looks like what was read there."""
        return float((farthest_tile(images, read, self.spec) < CLEAN).mean())


def score_tasks(pipe: TokenPipeline, count: int = 32, seed: int = 0) -> list[Row]:
    """Scores of every task that the run can do.

    Args:
      pipe: a run on the embedded data.
      count: pairs per task.
      seed: of pairs and images.

    Returns:
      Rows of "task", "setting", "kept", "met" and "clean", and what a task has of its own.
    """
    scorer = Scorer(pipe, get_spec(pipe.config.data.spec), count, seed)
    networks = pipe.networks
    rows = [*_strengths(scorer), *_inpainting(scorer), *_outpainting(scorer), *_editing(scorer)]
    rows += [*_mixing(scorer), *_interpolation(scorer)]
    if networks.num_classes:
        rows += _labels(scorer)
        if networks.predictor.mask_token is None:
            rows += _morphing(scorer)
    if networks.image_encoder is not None:
        rows += _variations(scorer)
    return rows


def _strengths(scorer: Scorer) -> list[Row]:
    pairs, rows = scorer.pairs(task_pairs.another), []
    for strength in STRENGTHS:

        def task(image: np.ndarray, pair: Pair, seed: int, strength: float = strength) -> Any:
            text = text_of(pair.request, scorer.spec)
            return editing.image_to_image(scorer.pipe, image, text, strength=strength, seed=seed)

        images = scorer.draw(pairs, task)
        rows.append(scorer.row("image to image", f"strength {strength}", images, pairs))
    return rows


def _inpainting(scorer: Scorer) -> list[Row]:
    """Objects in the masked half; of the rest all pixels, through the call, which keeps them."""
    spec, pairs = scorer.spec, scorer.pairs(task_pairs.right_half)
    mask = np.zeros((spec.image_size, spec.image_size), bool)
    mask[:, spec.margin + spec.tile * (spec.lattice // 2) :] = True
    images, same = [], []
    for number, pair in enumerate(pairs):
        image, text = image_of(pair.source, spec), text_of(pair.request, spec)
        options: dict[str, Any] = {"image": image, "mask": mask, "seed": scorer.seed + number}
        drawn = scorer.pipe(text, output_type="np", **options)[0]
        images.append(drawn)
        same.append(float((drawn == image)[~mask].mean()))
    places = [place for place in of.tiles(spec.lattice) if place[1] >= spec.lattice // 2]
    row = scorer.row("inpainting", "the right half", np.stack(images), pairs, places)
    # The source's right half is what is replaced: what is kept are the pixels of the left one.
    return [row | {"kept": float(np.mean(same))}]


def _outpainting(scorer: Scorer) -> list[Row]:
    """Half an image more to the right: the source's own attributes, and the window's new ones."""
    spec = scorer.spec
    if spec.lattice % 2:
        return []
    pairs, wide = scorer.pairs(task_pairs.next_window), []
    side, margin = spec.image_size, spec.image_size // 2
    for number, pair in enumerate(pairs):
        image, text = image_of(pair.source, spec), text_of(pair.request, spec)
        drawn = editing.outpaint(scorer.pipe, image, text, right=margin, seed=scorer.seed + number)
        wide.append(drawn.images[0])
    images = np.stack(wide)
    sources, requests = zip(*pairs, strict=True)
    first, last = (read_scenes(images[:, :, x : x + side], spec) for x in (0, margin))
    tiles, blank = of.tiles(spec.lattice), [Scene("", ())] * len(pairs)
    new = [place for place in tiles if place[1] >= spec.lattice // 2]
    return [
        {
            "task": "outpainting",
            "setting": f"{margin} pixels to the right",
            "kept": of.unchanged(first, sources, sources, tiles),
            "met": of.kept_and_met(last, blank, requests, new).met,
            "clean": scorer.clean(images[:, :, margin:], last),
        }
    ]


def _editing(scorer: Scorer) -> list[Row]:
    """One attribute changed: that one met, all others kept."""
    pairs = scorer.pairs(task_pairs.one_change)
    spec, settings = scorer.spec, edit_settings(scorer.pipe)

    def task(image: np.ndarray, pair: Pair, seed: int) -> Any:
        return editing.edit(scorer.pipe, image, text_of(pair.request, spec), seed=seed)

    images = scorer.draw(pairs, task)
    row = scorer.row("mask-free editing", f"{settings.rounds} rounds", images, pairs)
    sources, requests = zip(*pairs, strict=True)
    read = read_scenes(images, spec)
    kept = of.unchanged(read, sources, requests, of.tiles(spec.lattice))
    return [row | {"kept": kept}]


def _along(
    scorer: Scorer, name: str, pairs: Sequence[Pair], strips: np.ndarray, fractions: Sequence[float]
) -> list[Row]:
    """Frames [pairs, frames, ...]: each fraction's row, and how often a strip never goes back."""
    rows = [
        scorer.row(name, f"{fraction:.3g} of the way", strips[:, number], pairs)
        for number, fraction in enumerate(fractions)
    ]
    tiles, forward = of.tiles(scorer.spec.lattice), []
    for pair, strip in zip(pairs, strips, strict=True):
        read = read_scenes(strip, scorer.spec)
        kept = [of.kept_and_met([r], [pair.source], [pair.request], tiles).kept for r in read]
        forward.append(all(a >= b for a, b in pairwise(kept)))
    return [*rows[:-1], rows[-1] | {"forward": float(np.mean(forward))}]


def _mixing(scorer: Scorer) -> list[Row]:
    """Two captions of one background, side by side: each one's attributes in its own half."""
    pairs, spec = scorer.pairs(task_pairs.same_background), scorer.spec

    def task(image: np.ndarray, pair: Pair, seed: int) -> Any:
        texts = [text_of(scene, spec) for scene in pair]
        return variations.mix_parts(scorer.pipe, texts, seed=seed)

    images, half = scorer.draw(pairs, task), spec.lattice // 2
    left, right = (
        [place for place in of.tiles(spec.lattice) if (place[1] < half) == own]
        for own in (True, False)
    )
    row = scorer.row("mixing", "left one, right the other", images, pairs, right)
    kept = scorer.row("", "", images, pairs, left)["kept"]
    return [row | {"kept": kept}]


def _interpolation(scorer: Scorer) -> list[Row]:
    pairs, spec = scorer.pairs(task_pairs.another), scorer.spec

    def strip(pair: Pair, seed: int) -> np.ndarray:
        texts = (text_of(pair.source, spec), text_of(pair.request, spec))
        frames = len(FRACTIONS)
        return variations.interpolate(scorer.pipe, *texts, frames=frames, seed=seed).images

    strips = np.stack([strip(pair, scorer.seed + n) for n, pair in enumerate(pairs)])
    return _along(scorer, "interpolation", pairs, strips, FRACTIONS)


def _labels(scorer: Scorer) -> list[Row]:
    """Images of a label alone: whether its shape is there."""
    spec, labels = scorer.spec, [n % len(scorer.spec.shapes) for n in range(scorer.count)]
    seeds = [scorer.seed + n for n in range(scorer.count)]
    images = scorer.pipe.generate([Condition(label=n) for n in labels], seed=seeds).images
    read = read_scenes(images, spec)
    met = [
        any(o.shape == spec.shapes[label] for o in scene.objects)
        for label, scene in zip(labels, read, strict=True)
    ]
    row = {"task": "class label", "setting": "no text", "met": float(np.mean(met))}
    return [row | {"clean": scorer.clean(images, read)}]


def _morphing(scorer: Scorer) -> list[Row]:
    """Shapes by their label in the layout of an image, which the label does not tell.

    Kept are layouts (the tiles with objects), met is the label; the same label without an image has
    them by chance.
    """
    spec, pairs = scorer.spec, scorer.pairs(task_pairs.another_shape)
    where = lambda scene: {(o.row, o.column) for o in scene.objects}
    label = lambda pair: Condition(label=spec.shapes.index(pair.request.objects[0].shape))

    def task(image: np.ndarray, pair: Pair, seed: int) -> Any:
        return editing.morph(scorer.pipe, image, label(pair), seed=seed)

    def alone(image: np.ndarray, pair: Pair, seed: int) -> Any:
        return scorer.pipe.generate([label(pair)], seed=seed)

    def row(images: np.ndarray) -> Row:
        read = read_scenes(images, spec)
        shown = list(zip(read, pairs, strict=True))
        kept = [where(scene) == where(pair.source) for scene, pair in shown]
        met = [
            any(o.shape == pair.request.objects[0].shape for o in scene.objects)
            for scene, pair in shown
        ]
        clean = scorer.clean(images, read)
        return {"kept": float(np.mean(kept)), "met": float(np.mean(met)), "clean": clean}

    drawn, chance = row(scorer.draw(pairs, task)), row(scorer.draw(pairs, alone))
    own = {"task": "morphing", "setting": "layout, and a label", "chance": chance["kept"]}
    return [own | drawn]


def _variations(scorer: Scorer) -> list[Row]:
    """What variations have in common with their image, by kind, and with another one's."""
    spec, pairs = scorer.spec, scorer.pairs(task_pairs.another)

    def task(image: np.ndarray, pair: Pair, seed: int) -> Any:
        return variations.variations(scorer.pipe, [image], seed=seed)

    images = scorer.draw(pairs, task)
    read, sources = read_scenes(images, spec), [pair.source for pair in pairs]
    others = [*sources[1:], sources[0]]
    own, chance = (of.shared_by_kind(read, scenes) for scenes in (sources, others))
    clean = scorer.clean(images, read)
    return [
        {"task": "variations", "setting": kind, "kept": own[kind], "chance": chance[kind],
         "clean": clean} for kind in of.KINDS
    ]  # fmt: skip
