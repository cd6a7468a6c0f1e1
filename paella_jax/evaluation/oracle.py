"""Reads captioned-shapes images back without knowing the caption, and scores them.

The background is read from the border; then each lattice tile takes the template of least squared
error among the empty tile and every shape x size x color (x jitter where the spec has it).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from paella_jax.data.shapes import Scene, ShapeObject, ShapesSpec, get_spec
from paella_jax.data.shapes_captions import parse_caption
from paella_jax.data.shapes_render import BACKGROUNDS, render, tile_patch

ATTRIBUTES = ("color", "shape", "size")
CLEAN = 0.02  # squared difference of values in [0, 1], mean over a tile; good tokenizers have 0.004


@dataclass(frozen=True)
class OracleScore:
    """How well images show what was asked for; every rate is in [0, 1].

    Read and wanted objects are compared tile by tile. `color`, `shape` and `size` are rates over
    the `num_matched` tiles that hold an object in both (0 if there is none): missing and extra
    objects count against `count`, `position` and `exact` instead. Jitter is ignored.
    """

    num_images: int
    num_objects: int  # wanted objects
    num_matched: int  # wanted objects whose tile holds some object
    exact: float  # images with everything right
    background: float  # images with the right background
    count: float  # images with the right number of objects
    position: float  # images with objects in exactly the right tiles
    color: float
    shape: float
    size: float
    exact_images: np.ndarray  # bool [batch]
    confusion: dict[str, dict[str, dict[str, int]]]  # attribute -> wanted -> read -> how many
    # Images that are exact and look like it: a garbled object has a nearest template too.
    clean: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """The score as plain JSON types."""
        return asdict(self) | {"exact_images": self.exact_images.tolist()}


def read_scenes(images: np.ndarray, spec: ShapesSpec) -> list[Scene]:
    """What each image shows, as far as `spec` has words for it.

    A read scene can have any number of objects, from none to one in each tile.

    Args:
        images: [batch, height, width, 3], float in [0, 1] or uint8.
        spec: the variant of the task that the images belong to.

    Raises:
        ValueError: wrong shape, dtype or range, or values that are not finite.
    """
    pixels = checked_images(images, spec)
    grounds = _read_backgrounds(pixels, spec)
    tiles = _split_tiles(pixels, spec)
    best = np.zeros(tiles.shape[:2], np.int64)
    for i, name in enumerate(spec.backgrounds):
        chosen = grounds == i
        if chosen.any():
            best[chosen] = _nearest_template(tiles[chosen], spec, name)
    return [
        _scene(spec.backgrounds[ground], row, spec)
        for ground, row in zip(grounds, best, strict=True)
    ]


def score(images: np.ndarray, scenes: Sequence[Scene], spec: ShapesSpec) -> OracleScore:
    """Reads `images` [batch, height, width, 3] and compares them with the wanted scenes.

    Raises ValueError as `read_scenes` does, when the numbers of images and scenes differ, and when
    there are none.
    """
    read = read_scenes(images, spec)
    result = compare_scenes(read, scenes)
    clean = result.exact_images & (farthest_tile(images, read, spec) < CLEAN)
    return replace(result, clean=float(clean.mean()))


def compare_scenes(read: Sequence[Scene], wanted: Sequence[Scene]) -> OracleScore:
    """The score of scenes that were read against the scenes that were wanted."""
    if len(read) != len(wanted) or not wanted:
        raise ValueError(f"cannot compare {len(read)} images with {len(wanted)} scenes")
    pairs = [(r.without_jitter(), w.without_jitter()) for r, w in zip(read, wanted, strict=True)]
    exact = np.array([r == w for r, w in pairs])
    tiles = [tile for r, w in pairs for tile in _paired_tiles(r, w)]
    matched = [(r, w) for r, w in tiles if r and w]
    right = {
        name: float(np.mean([getattr(r, name) == getattr(w, name) for r, w in matched] or [0.0]))
        for name in ATTRIBUTES
    }
    return OracleScore(
        num_images=len(pairs),
        num_objects=sum(w is not None for _, w in tiles),
        num_matched=len(matched),
        exact=float(exact.mean()),
        background=float(np.mean([r.background == w.background for r, w in pairs])),
        count=float(np.mean([len(r.objects) == len(w.objects) for r, w in pairs])),
        position=float(np.mean([set(_by_tile(r)) == set(_by_tile(w)) for r, w in pairs])),
        **right,
        exact_images=exact,
        confusion=_confusion(pairs, tiles),
    )


def checked_images(images: np.ndarray, spec: ShapesSpec) -> np.ndarray:
    """Images of a spec, uint8 or float in [0, 1] -> float32 [n, height, width, 3] in [0, 1].

    Raises:
        ValueError: wrong shape, dtype or range, or values that are not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (spec.image_size, spec.image_size, 3):
        wanted = f"[n, {spec.image_size}, {spec.image_size}, 3]"
        raise ValueError(f"images of {spec.name!r} must be {wanted}, got {list(images.shape)}")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be float in [0, 1] or uint8, got {images.dtype}")
    pixels = images.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("images hold values that are not finite")
    # A decoder may overshoot a little; 0..255 and -1..1 are a caller's mistake.
    if pixels.size and (pixels.min() < -0.5 or pixels.max() > 1.5):
        raise ValueError(f"images must be in [0, 1], got [{pixels.min()}, {pixels.max()}]")
    return np.clip(pixels, 0.0, 1.0)


def farthest_tile(images: np.ndarray, read: Sequence[Scene], spec: ShapesSpec) -> np.ndarray:
    """Of each image, the largest mean squared error of a tile from what was read there."""
    perfect = np.stack([render(scene, spec) for scene in read])
    tiles = [_split_tiles(checked_images(x, spec), spec) for x in (images, perfect)]
    return np.square(tiles[0] - tiles[1]).mean(-1).max(-1)


def _read_backgrounds(pixels: np.ndarray, spec: ShapesSpec) -> np.ndarray:
    """Index of the background nearest to the median border pixel, [batch]."""
    edges = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    border = np.median(np.concatenate(edges, axis=1), axis=1)
    known = np.array([BACKGROUNDS[name] for name in spec.backgrounds], np.float32) / 255
    return ((border[:, None] - known[None]) ** 2).sum(-1).argmin(-1)


def _split_tiles(pixels: np.ndarray, spec: ShapesSpec) -> np.ndarray:
    """The lattice tiles, row by row: [batch, lattice**2, tile * tile * 3]."""
    n, tile, end = spec.lattice, spec.tile, spec.margin + spec.lattice * spec.tile
    inner = pixels[:, spec.margin : end, spec.margin : end]
    grid = inner.reshape(len(pixels), n, tile, n, tile, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(len(pixels), n * n, tile * tile * 3)


def _nearest_template(tiles: np.ndarray, spec: ShapesSpec, background: str) -> np.ndarray:
    """Index into `_choices` of the least squared error for each tile, [batch, lattice**2]."""
    ground, templates, energy = _templates(spec, background)
    # |x - t|^2 without the |x|^2 that all templates share; one matmul for all tiles.
    return (energy - 2 * (tiles - ground) @ templates.T).argmin(-1)


@lru_cache(maxsize=16)
def _templates(spec: ShapesSpec, background: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Background [P], templates minus background [T, P] (the first is empty) and energies [T]."""
    ground = np.tile(np.array(BACKGROUNDS[background], np.float32) / 255, spec.tile**2)
    patches = [
        tile_patch(shape, size, color, background, spec.tile, jitter).reshape(-1)
        for color, shape, size, jitter in _choices(spec)
    ]
    filled = np.stack(patches).astype(np.float32) / 255 - ground
    templates = np.concatenate([np.zeros_like(filled[:1]), filled])
    return ground, templates, (templates**2).sum(-1)


@lru_cache(maxsize=4)
def _choices(spec: ShapesSpec) -> list[tuple[str, str, str, tuple[int, int]]]:
    steps = range(-spec.jitter, spec.jitter + 1)
    jitters = list(product(steps, steps))
    return list(product(spec.colors, spec.shapes, spec.sizes, jitters))


def _scene(background: str, best: np.ndarray, spec: ShapesSpec) -> Scene:
    objects = []
    for position in np.flatnonzero(best):
        row, column = divmod(int(position), spec.lattice)
        color, shape, size, jitter = _choices(spec)[best[position] - 1]
        objects.append(ShapeObject(color, shape, size, row, column, jitter))
    return Scene(background, tuple(objects))


def _by_tile(scene: Scene) -> dict[tuple[int, int], ShapeObject]:
    return {(o.row, o.column): o for o in scene.objects}


def _paired_tiles(
    read: Scene, wanted: Scene
) -> list[tuple[ShapeObject | None, ShapeObject | None]]:
    """(read, wanted) for each tile that holds an object in at least one of the two scenes."""
    a, b = _by_tile(read), _by_tile(wanted)
    return [(a.get(tile), b.get(tile)) for tile in sorted(a.keys() | b.keys())]


def _confusion(
    pairs: Sequence[tuple[Scene, Scene]],
    tiles: Sequence[tuple[ShapeObject | None, ShapeObject | None]],
) -> dict[str, dict[str, dict[str, int]]]:
    """attribute -> wanted -> read -> count; `none` stands for a missing or an extra object."""
    seen = {
        name: Counter((getattr(w, name, "none"), getattr(r, name, "none")) for r, w in tiles)
        for name in ATTRIBUTES
    }
    seen["background"] = Counter((w.background, r.background) for r, w in pairs)
    seen["count"] = Counter((str(len(w.objects)), str(len(r.objects))) for r, w in pairs)
    tables: dict[str, dict[str, dict[str, int]]] = {name: {} for name in seen}
    for name, counts in seen.items():
        for (wanted, read), number in sorted(counts.items()):
            tables[name].setdefault(wanted, {})[read] = number
    return tables


def score_images(images: np.ndarray, captions: Sequence[str], spec_name: str) -> OracleScore:
    """Scores images [count, H, W, 3] in [0, 1] against the captions they were drawn from."""
    spec = get_spec(spec_name)
    return score(images, [parse_caption(text, spec) for text in captions], spec)


def summary(result: OracleScore) -> dict[str, Any]:
    """The rates of a score, without the per-image list and the confusion tables."""
    names = ("exact", "clean", "count", "position", "color", "shape", "size", "background")
    return {name: round(float(getattr(result, name)), 4) for name in names}
