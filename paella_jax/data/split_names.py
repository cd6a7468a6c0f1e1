"""Which folders and files are named as a split: train and validation, in the ways that are usual.

`Train`, `train2017`, `training_set` and `trainset` are all for training. A name that is no split's
as a whole may hold one among its words, as `train-00000.tar` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from paella_jax.data.listing import has_images, is_image, why_left_out
from paella_jax.outside import listed

TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "heldout")
TEST = ("test",)  # validates where nothing else is there to do so
ALL = frozenset((*TRAIN, *VALIDATION, *TEST))
ENDING = re.compile(r"(?<=[a-z])[-_ ]?(set)?[-_ ]?\d*$")
TOLD = 3  # names that are not used


def split_of(name: str) -> str:
    """The split that a name is, as "val" of "Val2017" and "val_set"; empty for none."""
    plain = ENDING.sub("", name.lower())
    return plain if plain in ALL else ""


def split_of_file(file: Path, below: Path) -> str:
    """The split that a file's name tells, else that of the folders it is in; empty for none.

    Args:
      file: named by words, as "set-train-0.tar".
      below: the folder of all files; those further up tell nothing, but for the file's own.
    """
    place = file.absolute().parent
    inner = place.relative_to(below).parts[::-1]
    whole = [split_of(name) for name in inner or (place.name,)]
    return next(filter(None, (_in_words(file.name), *whole, *map(_in_words, inner))), "")


def _in_words(name: str) -> str:
    return next(filter(None, map(split_of, re.split(r"[-_. ]+", name))), "")


def find_pair(folder: Path) -> tuple[str, str] | None:
    """Its subfolders for training and validation, where it has both, with images.

    They may also be in its only subfolder with images, as "images/train" and "images/val".
    """
    pair = _pair_in(folder)
    if pair:
        return pair
    filled = []
    for name in _subfolders(folder):
        filled += [name] if has_images(folder / name) else []
        if len(filled) > 1:
            return None
    inner = _pair_in(folder / filled[0]) if filled else None
    if not inner or any(is_image(n) and not why_left_out(n) for n in os.listdir(folder)):
        return None
    return f"{filled[0]}/{inner[0]}", f"{filled[0]}/{inner[1]}"


def _pair_in(folder: Path) -> tuple[str, str] | None:
    kinds: dict[str, list[str]] = {}
    for name in _subfolders(folder):
        kind = split_of(name)
        if kind and has_images(folder / name):
            kinds.setdefault(kind, []).append(name)
    train, other = _one_of(kinds, TRAIN), _one_of(kinds, (*VALIDATION, *TEST))
    return (train, other) if train and other else None


def _one_of(kinds: dict[str, list[str]], wanted: tuple[str, ...]) -> str:
    """The folder of the first kind that is there; empty for none, and where two are equally so."""
    exact = next((kind for kind in wanted if kind in kinds.get(kind, ())), "")
    names = next((kinds[kind] for kind in wanted if kind in kinds), [])
    return exact or (names[0] if len(names) == 1 else "")


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not why_left_out(e.name))
    except OSError:
        return []  # listing it says so


def tell_unused(folder: Path, images: Iterable[Path]) -> str:
    """In words, the folders of images that are named as a split, where none is used as one."""
    found = set()
    for place in {image.parent for image in images}:
        parts = place.relative_to(folder).parts if place.is_relative_to(folder) else ()
        found |= {"/".join(parts[: i + 1]) for i, name in enumerate(parts) if split_of(name)}
    if not found:
        return ""
    return f"; not used as splits: {listed((f'{name}/' for name in sorted(found)), TOLD)}"
