"""The embedded captioned-shapes task: specs, scenes and splits.

Captions are in `shapes_captions`, pixels in `shapes_render`.

A scene is a background and a few objects on a lattice. Scene `index` of a split is a pure function
of (spec, split, seed, index) in integer arithmetic, so it is the same on every machine and every
numpy version, needs no state and can be read in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

SPLITS = ("train", "validation", "heldout")
# What is scored: combinations that training has, and those that it never has.
SCORED = {"seen": "validation", "heldout": "heldout"}

_SHAPE_NAMES = ("circle", "square", "triangle", "cross", "ring", "star", "diamond", "heart")
_COLOR_NAMES = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")


@dataclass(frozen=True)
class ShapesSpec:
    """What one variant of the task contains. The order of every tuple is part of the contract."""

    name: str
    image_size: int  # pixels per side
    lattice: int  # tiles (places for one object) per side, 2 or 3
    jitter: int  # objects move by up to this many whole pixels; captions do not tell
    min_objects: int
    max_objects: int
    colors: tuple[str, ...]
    shapes: tuple[str, ...]
    sizes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    relations: bool  # captions may place an object by its neighbour
    heldout: tuple[tuple[str, str], ...]  # (color, shape) pairs that training never sees
    validation_every: int  # 1 in so many distinct scenes is validation only; 0: scenes are shared

    @property
    def tile(self) -> int:
        """Pixels per tile side: a multiple of 4, so each tile has the same phase on an f4 grid."""
        return self.image_size // self.lattice // 4 * 4

    @property
    def margin(self) -> int:
        """Pixels between the image border and the lattice."""
        return (self.image_size - self.tile * self.lattice) // 2


@dataclass(frozen=True)
class ShapeObject:
    """One object; `row` and `column` count from the top left, `jitter` is (down, right) pixels."""

    color: str
    shape: str
    size: str
    row: int
    column: int
    jitter: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scene:
    """A background and its objects, which are kept in lattice order (row by row).

    Raises ValueError when two objects are on one tile.
    """

    background: str
    objects: tuple[ShapeObject, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.objects, key=lambda o: (o.row, o.column)))
        if len({(o.row, o.column) for o in ordered}) < len(ordered):
            raise ValueError(f"two objects share a lattice cell: {ordered}")
        object.__setattr__(self, "objects", ordered)

    def without_jitter(self) -> "Scene":
        """The scene as far as its caption can tell."""
        return Scene(self.background, tuple(replace(o, jitter=(0, 0)) for o in self.objects))


_HELDOUT = (("red", "triangle"), ("green", "circle"), ("blue", "square"), ("yellow", "cross"))

# `tiny` has 48 scenes in all. It is a smoke test of learning, not of generalisation: a single pair
# is held out (one per colour would make the shape a function of the colour), and train and
# validation draw from the same 40 remaining scenes in different orders.
SPECS = {
    "tiny": ShapesSpec(
        name="tiny", image_size=32, lattice=2, jitter=0, min_objects=1, max_objects=1,
        colors=_COLOR_NAMES[:3], shapes=_SHAPE_NAMES[:2], sizes=("large",),
        backgrounds=("black", "white"), relations=False,
        heldout=(("blue", "square"),), validation_every=0,
    ),
    "shapes": ShapesSpec(
        name="shapes", image_size=32, lattice=2, jitter=0, min_objects=1, max_objects=2,
        colors=_COLOR_NAMES[:6], shapes=_SHAPE_NAMES[:4], sizes=("small", "large"),
        backgrounds=("black", "gray", "white"), relations=False,
        heldout=(*_HELDOUT, ("purple", "circle"), ("orange", "square")), validation_every=10,
    ),
    # `shapes` with one object: shorter captions and nothing to bind, for quick comparisons.
    "single": ShapesSpec(
        name="single", image_size=32, lattice=2, jitter=0, min_objects=1, max_objects=1,
        colors=_COLOR_NAMES[:6], shapes=_SHAPE_NAMES[:4], sizes=("small", "large"),
        backgrounds=("black", "gray", "white"), relations=False,
        heldout=(*_HELDOUT, ("purple", "circle"), ("orange", "square")), validation_every=10,
    ),
    "shapes64": ShapesSpec(
        name="shapes64", image_size=64, lattice=3, jitter=1, min_objects=1, max_objects=3,
        colors=_COLOR_NAMES, shapes=_SHAPE_NAMES, sizes=("small", "large"),
        backgrounds=("black", "gray", "white", "brown"), relations=True,
        heldout=(
            *_HELDOUT,
            ("purple", "heart"), ("orange", "star"), ("cyan", "ring"), ("pink", "diamond"),
        ),
        validation_every=10,
    ),
}  # fmt: skip


def get_spec(name: str) -> ShapesSpec:
    """The spec called `name`; ValueError naming the known ones otherwise."""
    if name not in SPECS:
        raise ValueError(f"unknown shapes spec {name!r}; known: {', '.join(SPECS)}")
    return SPECS[name]


def check_scene(scene: Scene, spec: ShapesSpec) -> None:
    """Raises ValueError when `scene` uses a word, tile or jitter that `spec` does not have."""
    require_known("background", scene.background, spec.backgrounds)
    for o in scene.objects:
        require_known("color", o.color, spec.colors)
        require_known("shape", o.shape, spec.shapes)
        require_known("size", o.size, spec.sizes)
        if not (0 <= o.row < spec.lattice and 0 <= o.column < spec.lattice):
            raise ValueError(f"{o} lies outside the {spec.lattice}x{spec.lattice} lattice")
        if max(abs(o.jitter[0]), abs(o.jitter[1])) > spec.jitter:
            raise ValueError(f"{o} is jittered by more than {spec.jitter} pixels")


def require_known(kind: str, word: str, words: Sequence[str]) -> None:
    """Raises ValueError when `word` is not one of `words`."""
    if word not in words:
        raise ValueError(f"unknown {kind} {word!r}; known: {', '.join(words)}")


# --- sampling ------------------------------------------------------------------------------------

_MASK64 = (1 << 64) - 1
_GOLDEN64 = 0x9E3779B97F4A7C15
_DOMAINS = {name: i + 1 for i, name in enumerate((*SPLITS, "assign", "relation", "paraphrase"))}


def _scramble(value: int) -> int:
    """The splitmix64 output function (Steele et al. 2014), a bijection of 64-bit integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


class Draws:
    """A splitmix64 stream that starts at a hash of its key."""

    def __init__(self, domain: str, *key: int) -> None:
        self._state = _DOMAINS[domain]
        for part in key:
            self._state = _scramble((self._state + _GOLDEN64) & _MASK64) ^ (part & _MASK64)

    def below(self, bound: int) -> int:
        """An integer in [0, bound)."""
        self._state = (self._state + _GOLDEN64) & _MASK64
        return _scramble(self._state) % bound

    def pick(self, words: Sequence[str]) -> str:
        """One of `words`."""
        return words[self.below(len(words))]


def sample_scene(spec: ShapesSpec, split: str, seed: int, index: int) -> Scene:
    """Scene `index` of a split: a pure function of its arguments.

    `heldout` scenes have at least one held-out pair, the others none. Where
    `spec.validation_every` is set, train and validation have no scene in common (jitter aside).
    Raises ValueError for an unknown split or a negative index.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    draws = Draws(split, seed, index)
    for _ in range(10_000):  # the expected number of rounds is `validation_every` at most
        scene = _draw_scene(spec, draws, heldout=split == "heldout")
        if split == "heldout" or not spec.validation_every:
            break
        is_validation = scene_draws("assign", scene, spec).below(spec.validation_every) == 0
        if is_validation == (split == "validation"):
            break
    else:
        raise RuntimeError(f"spec {spec.name!r} has no scene for split {split!r}")
    if not spec.jitter:
        return scene
    span = 2 * spec.jitter + 1
    moved = [
        replace(o, jitter=(draws.below(span) - spec.jitter, draws.below(span) - spec.jitter))
        for o in scene.objects
    ]
    return Scene(scene.background, tuple(moved))


def _draw_scene(spec: ShapesSpec, draws: Draws, heldout: bool) -> Scene:
    """One scene without jitter; with `heldout`, one of its objects is a held-out pair."""
    background = draws.pick(spec.backgrounds)
    count = spec.min_objects + draws.below(spec.max_objects - spec.min_objects + 1)
    special = draws.below(count) if heldout else -1
    free = list(range(spec.lattice**2))
    objects = []
    for i in range(count):
        row, column = divmod(free.pop(draws.below(len(free))), spec.lattice)
        if i == special:
            color, shape = spec.heldout[draws.below(len(spec.heldout))]
        else:
            pairs = _pairs(spec, with_heldout=heldout)
            color, shape = pairs[draws.below(len(pairs))]
        objects.append(ShapeObject(color, shape, draws.pick(spec.sizes), row, column))
    return Scene(background, tuple(objects))


@cache
def _pairs(spec: ShapesSpec, with_heldout: bool) -> tuple[tuple[str, str], ...]:
    every = ((color, shape) for color in spec.colors for shape in spec.shapes)
    return tuple(pair for pair in every if with_heldout or pair not in spec.heldout)


def scene_draws(domain: str, scene: Scene, spec: ShapesSpec, *key: int) -> Draws:
    """A stream that depends on what the scene shows, not on its jitter."""
    content = [spec.backgrounds.index(scene.background)]
    for o in scene.objects:
        content += [o.row, o.column, spec.colors.index(o.color)]
        content += [spec.shapes.index(o.shape), spec.sizes.index(o.size)]
    return Draws(domain, *content, *key)
