"""Which images of a folder are for training and which are held back for validation.

The first of these that there is: `data.validation_folder`; subfolders named train and validation
(or valid, val, dev, test; split_names.py), also in a table's file names; a split column of the
table; else a fraction of the images.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paella_jax.data.captions import CaptionedFile, find_table
from paella_jax.data.listing import is_image, list_files
from paella_jax.data.split_names import TEST, TRAIN, VALIDATION, find_pair, split_of, tell_unused
from paella_jax.outside import listed

USUAL_COLUMN = "split"

Samples = list[CaptionedFile]


@dataclass(frozen=True)
class Held:
    """What is held back for validation.

    Attributes:
      folder: of the validation images; empty for a part of the training folder's.
      fraction: of the images, where nothing else says which; 0 holds none back.
      seed: chooses them by their names, so that one stays where it is when others come; below 0
        they are evenly spaced in the order of the folder.
      column: of a table, that says of every image which split it is in.
    """

    folder: str = ""
    fraction: float = 0.05
    seed: int = -1
    column: str = USUAL_COLUMN

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 1.0:
            raise ValueError(f"data.split must be at least 0 and below 1, got {self.fraction}")
        if self.folder and not Path(self.folder).is_dir():
            raise ValueError(f"data.validation_folder {self.folder!r} is not a folder")

    @property
    def way(self) -> str:
        """How the fraction is chosen, in words."""
        return "evenly spaced" if self.seed < 0 else f"by data.split_seed {self.seed}"


@dataclass(frozen=True)
class Chosen:
    """The samples of a split, and in words how they were chosen."""

    samples: Samples
    how: str


def choose(
    folder: Path,
    read: Callable[[Path], Samples],
    held: Held,
    training: bool,
    left_out: Counter[str],
) -> Chosen:
    """The samples of a folder that are for training, or for validation.

    Args:
      folder: of the training images.
      read: lists all samples of a folder.
      held: what is held back.
      training: which of the two is asked for.
      left_out: gets the number of images that are in neither.

    Raises:
      ValueError: folders that contain each other or hold the same images, a column that is not
        there, or as `read`.
    """
    pair = None if find_table(folder) else find_pair(folder)
    trained = folder / pair[0] if pair else folder
    if held.folder:
        _check_apart(held.folder, trained)
    if held.folder and not training:
        return Chosen(read(Path(held.folder)), "data.validation_folder")
    samples = read(trained if training or not pair else folder / pair[1])
    if held.folder:
        samples = _outside(samples, Path(held.folder), left_out)
    if pair:
        _count_outside(folder, pair, left_out)
        return Chosen(samples, f"its folder {pair[0] if training else pair[1]}/")
    labels = _labels(samples, folder, held)
    if labels:
        # Labels by folders are only taken where some are for training.
        where = f"{find_table(folder)}, column {held.column!r}"
        samples, other = _by_label(samples, labels, where, left_out)
        if other or held.folder:
            return Chosen(samples if training else other, "by the table's splits")
    unused = tell_unused(folder, (sample.image for sample in samples))
    if held.folder:
        return Chosen(samples, f"validation has its own folder{unused}")
    part = _by_fraction(samples, folder, held, training)
    return Chosen(part.samples, part.how + unused)


def _check_apart(inner: str, folder: Path) -> None:
    """Raises ValueError where the validation folder leaves no image of a folder to train on."""
    if folder.resolve().is_relative_to(Path(inner).resolve()):
        raise ValueError(
            f"data.validation_folder {inner} contains data.folder {folder}; give a folder of other "
            "images"
        )


def _outside(samples: Samples, place: Path, left_out: Counter[str]) -> Samples:
    """Those that are not in the validation folder, whichever of the two is made of links."""
    real = cache(lambda folder: Path(os.path.realpath(folder)))
    place = real(place)
    is_in = cache(lambda folder: real(folder).is_relative_to(place))

    def target(image: Path) -> Path:
        return real(image) if image.is_symlink() else real(image.parent) / image.name

    theirs = {target(file) for file in list_files(place, Counter()) if is_image(file)}
    rest = [s for s in samples if not is_in(s.image.parent) and target(s.image) not in theirs]
    left_out["in data.validation_folder"] += len(samples) - len(rest)
    if samples and not rest:
        raise ValueError(
            f"data.validation_folder {place} holds all images of the training; give a folder of "
            "other images"
        )
    return rest


def _count_outside(folder: Path, pair: tuple[str, str], left_out: Counter[str]) -> None:
    counts: Counter[str] = Counter()
    inside = tuple(f"{name}/" for name in pair)
    for file in list_files(folder, Counter()):
        if is_image(file) and not file.relative_to(folder).as_posix().startswith(inside):
            counts[f"outside of {pair[0]}/ and {pair[1]}/"] += 1
    left_out.update(counts)


def _labels(samples: Samples, folder: Path, held: Held) -> list[str]:
    """A split's name for every sample, by column or by its folders; empty where there are none."""
    if any(sample.split for sample in samples):
        return [split_of(sample.split) or sample.split for sample in samples]
    if held.column not in ("", USUAL_COLUMN):
        raise ValueError(f"the table of {folder} has no split in a column {held.column!r}")
    if not find_table(folder):
        return []
    parts = [s.image.relative_to(folder).parts if s.image.is_relative_to(folder) else ("",)
             for s in samples]  # fmt: skip
    labels = [next(filter(None, map(split_of, p[:-1])), p[0]) for p in parts]
    both = any(t in TRAIN for t in labels) and any(t in (*VALIDATION, *TEST) for t in labels)
    return labels if both else []


def _by_label(
    samples: Samples, labels: list[str], where: str, left_out: Counter[str]
) -> tuple[Samples, Samples]:
    """Those labelled for training, or not at all, and those for validation.

    Raises:
      ValueError: none is for training; `where` says what that was read from.
    """
    known = VALIDATION if any(label in VALIDATION for label in labels) else TEST
    train = [s for s, label in zip(samples, labels, strict=True) if label in ("", *TRAIN)]
    other = [s for s, label in zip(samples, labels, strict=True) if label in known]
    for label in labels:
        if label not in ("", *TRAIN, *known):
            left_out[f"of split {label!r}"] += 1
    if not train:
        raise ValueError(
            f"{where}: no image is in split {TRAIN[0]!r}; found {_counted(labels)}. Call the "
            f"training images {TRAIN[0]!r} there, or read no splits (--config.data.split_column=)"
        )
    return train, other


def _counted(labels: list[str]) -> str:
    """Each label with its number of images."""
    counts = Counter(labels).most_common()
    return listed(f"{label!r} ({count})" for label, count in counts)


def _by_fraction(samples: Samples, folder: Path, held: Held, training: bool) -> Chosen:
    def name(index: int) -> str:
        image = samples[index].image
        return (image.relative_to(folder) if image.is_relative_to(folder) else image).as_posix()

    count = len(samples)
    chosen = held_back(count, held, name)
    if not chosen or len(chosen) == count:
        return Chosen(samples, none_held(training))
    part = [s for i, s in enumerate(samples) if (i in chosen) != training]
    return Chosen(part, f"{len(chosen)} of {count} are held back, {held.way}")


def none_held(training: bool) -> str:
    """How all images were chosen where none is held back, in words."""
    return "none is held back" + (": validation shows images of the training" if training else "")


def held_back(count: int, held: Held, name: Callable[[int], str]) -> set[int]:
    """Which of so many images are held back: a fraction, evenly or by their names.

    Args:
      count: of the images.
      held: the fraction, and the seed that chooses by names.
      name: of the image at an index, the same wherever the data set lies.
    """
    return _evenly(count, held.fraction) if held.seed < 0 else _drawn(count, held, name)


def _evenly(count: int, fraction: float) -> set[int]:
    """Every twentieth index, from 19 on, for 0.05."""
    up_to = lambda index: int(index * fraction + 1e-9)
    return {i for i in range(count) if up_to(i + 1) > up_to(i)}


def _drawn(count: int, held: Held, name: Callable[[int], str]) -> set[int]:
    """The indices whose names come first in an order that the seed makes of them."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{held.seed}:{name(index)}".encode()).digest()

    wanted = round(count * held.fraction)
    if held.fraction > 0 and count > 1:
        wanted = min(max(wanted, 1), count - 1)
    return set(sorted(range(count), key=place)[:wanted])
