"""Captions of the captioned-shapes task, there and back.

The canonical caption determines its image up to jitter, and `parse_caption` inverts it. Paraphrases
say the same in other words; they are for robustness scores and are not parsed.
"""

import re
from dataclasses import dataclass

from paella_jax.data.shapes import (
    Scene,
    ShapeObject,
    ShapesSpec,
    check_scene,
    require_known,
    scene_draws,
)

# relation: (rows, columns) from the anchor to the object that the phrase names first
_RELATIONS = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}

_SYNONYMS = {
    "large": ("large", "big"), "small": ("small", "little"), "circle": ("circle", "disc"),
    "square": ("square", "box"), "cross": ("cross", "plus"), "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"), "purple": ("purple", "violet"), "gray": ("gray", "grey"),
    "top": ("top", "upper"), "bottom": ("bottom", "lower"), "below": ("below", "under"),
    "center": ("center", "middle"), "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}  # fmt: skip


@dataclass(frozen=True)
class _Wording:
    """How a caption is put together; the default is the canonical caption."""

    article: str = "a "
    at: str = "at the"
    frame: str = "{objects} on a {background} background"
    reverse: bool = False  # name the objects in reverse lattice order
    synonyms: tuple[tuple[str, str], ...] = ()

    def word(self, word: str) -> str:
        return dict(self.synonyms).get(word, word)

    def noun(self, o: ShapeObject) -> str:
        return self.article + " ".join(map(self.word, (o.size, o.color, o.shape)))

    def place(self, o: ShapeObject, spec: ShapesSpec) -> str:
        words = place_name(o.row, o.column, spec).split()
        if len(words) == 1 and words[0] in ("top", "bottom"):
            return f"{self.at} {words[0]}"  # "at the upper" is no English
        return " ".join([self.at, *map(self.word, words)])


def place_name(row: int, column: int, spec: ShapesSpec) -> str:
    """The words for a lattice tile, such as `top left`, `bottom` or `center`."""
    middle = ("",) * (spec.lattice - 2)
    rows, columns = ("top", *middle, "bottom"), ("left", *middle, "right")
    return f"{rows[row]} {columns[column]}".strip() or "center"


def caption(scene: Scene, spec: ShapesSpec, paraphrase_seed: int | None = None) -> str:
    """The caption of `scene`; it determines the image up to jitter.

    With `paraphrase_seed` the same content in other words (order, synonyms, dropped articles),
    chosen by the seed and the scene. Raises ValueError when the scene does not fit the spec.
    """
    check_scene(scene, spec)
    wording = _Wording() if paraphrase_seed is None else _paraphrase(scene, spec, paraphrase_seed)
    phrases = _phrases(scene, spec, wording)
    if wording.reverse:
        phrases.reverse()
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return wording.frame.format(objects=listed, background=wording.word(scene.background))


def _phrases(scene: Scene, spec: ShapesSpec, wording: _Wording) -> list[str]:
    """One phrase per object, or one for two objects of which one is placed by the other."""
    objects = list(scene.objects)
    related = _related(scene, spec)
    phrases = []
    if related:
        relation, first, anchor = related
        objects = [o for o in objects if o not in (first, anchor)]
        subject = f"{wording.noun(first)} {wording.word(relation)} {wording.noun(anchor)}"
        phrases.append(f"{subject} {wording.place(anchor, spec)}")
    return phrases + [f"{wording.noun(o)} {wording.place(o, spec)}" for o in objects]


def _related(scene: Scene, spec: ShapesSpec) -> tuple[str, ShapeObject, ShapeObject] | None:
    """(relation, object, anchor) for neighbours; by a hash of the scene 1 in 3 has no relation."""
    if not spec.relations:
        return None
    choice = scene_draws("relation", scene, spec).below(3)
    for i, a in enumerate(scene.objects):
        for b in scene.objects[i + 1 :]:
            first, anchor = (a, b) if choice == 1 else (b, a)
            step = (first.row - anchor.row, first.column - anchor.column)
            for relation, offset in _RELATIONS.items():
                if choice and step == offset:
                    return relation, first, anchor
    return None


def _paraphrase(scene: Scene, spec: ShapesSpec, seed: int) -> _Wording:
    draws = scene_draws("paraphrase", scene, spec, seed)
    article = draws.pick(("a ", "the ", ""))
    frames = (
        f"{{objects}} on {article}{{background}} background",
        f"on {article}{{background}} background, {{objects}}",
        f"{article}{{background}} background with {{objects}}",
    )
    return _Wording(
        article=article,
        at=draws.pick(("at the", "in the", "at")),
        frame=draws.pick(frames),
        reverse=bool(draws.below(2)),
        synonyms=tuple((word, draws.pick(options)) for word, options in _SYNONYMS.items()),
    )


_NOUN = r"an? (\S+) (\S+) (\S+)"
_PHRASE = re.compile(rf"{_NOUN}(?: ({'|'.join(_RELATIONS)}) {_NOUN})? at the (.+)")


def parse_caption(text: str, spec: ShapesSpec) -> Scene:
    """The scene that a canonical caption describes: the inverse of `caption`, without jitter.

    Case, extra spaces and a final full stop do not matter, the order of objects neither.
    Raises ValueError that says what cannot be read or does not exist in `spec`.
    """
    text = " ".join(text.lower().split()).rstrip(".")
    body, _, tail = text.rpartition(" on a ")
    if not body or not tail.endswith(" background"):
        raise ValueError(f"the prompt must end in 'on a <color> background': {text!r}")
    objects: list[ShapeObject] = []
    for phrase in re.split(r", and |, | and ", body):
        objects += _parse_phrase(phrase, spec)
    if not spec.min_objects <= len(objects) <= spec.max_objects:
        allowed = f"{spec.min_objects} to {spec.max_objects}"
        raise ValueError(f"{len(objects)} objects asked for; {spec.name!r} shows {allowed}")
    scene = Scene(tail.removesuffix(" background"), tuple(objects))
    check_scene(scene, spec)
    return scene


def _parse_phrase(phrase: str, spec: ShapesSpec) -> list[ShapeObject]:
    match = _PHRASE.fullmatch(phrase)
    if not match:
        form = "'a <size> <color> <shape> at the <place>'"
        raise ValueError(f"cannot read {phrase!r}; an object is written {form}")
    size, color, shape, relation, anchor_size, anchor_color, anchor_shape, place = match.groups()
    tiles = [(row, column) for row in range(spec.lattice) for column in range(spec.lattice)]
    places = {place_name(row, column, spec): (row, column) for row, column in tiles}
    require_known("place", place, tuple(places))
    row, column = places[place]
    if relation is None:
        return [ShapeObject(color, shape, size, row, column)]
    if not spec.relations:
        raise ValueError(f"{relation!r}: captions of {spec.name!r} have no relations")
    anchor = ShapeObject(anchor_color, anchor_shape, anchor_size, row, column)
    down, right = _RELATIONS[relation]
    if (row + down, column + right) not in tiles:
        raise ValueError(f"there is no cell {relation} the {place}: {phrase!r}")
    return [ShapeObject(color, shape, size, row + down, column + right), anchor]
