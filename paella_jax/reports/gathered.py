"""A stream of images -> what all scores of a set need, one batch of images in memory at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from paella_jax.config import UserError
from paella_jax.data.captioned import most_broken
from paella_jax.data.captions import find_table, list_captioned, list_images, read_text
from paella_jax.data.records import UNREADABLE
from paella_jax.encoders.clip_judge import ClipJudge
from paella_jax.encoders.feature_network import BATCH, FeatureNetwork, Features
from paella_jax.evaluation.image_measures import is_blank
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_rgb


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


def keeping(images: Iterable[np.ndarray], kept: list[np.ndarray], count: int) -> Iterator[Any]:
    """The same stream; its first images are put into `kept`."""
    for image in images:
        if len(kept) < count:
            kept.append(image)
        yield image


@dataclass
class ImageFolder:
    """The images below a folder, in the order of their names.

    Attributes:
      folder: of images; captions beside them as training reads them, if there are any.
      prompts: a text file with a caption per line, for the images in their order.
      names: of the images, below the folder.
      captions: of the images; empty where there are none.
      unreadable: positions of images that were skipped.

    Raises:
      ValueError: no such folder, no images in it, or another number of prompts.
    """

    folder: str
    prompts: str = ""
    names: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = Path(self.folder)
        if not root.is_dir():
            raise ScoreError(f"{root} is not a folder of images")
        samples = list_images(root, Counter())
        captioned = {s.image: s for s in list_captioned(root, Counter())} if _has(root) else {}
        self.files = [sample.image for sample in samples]
        self.names = [str(file.relative_to(root)) for file in self.files]
        if not self.files:
            raise ScoreError(f"{root} has no images to score")
        if self.prompts:
            self.captions = read_prompts(self.prompts)
            if len(self.captions) != len(self.files):
                raise ScoreError(
                    f"{self.prompts} has {len(self.captions)} prompts for {len(self.files)} images "
                    f"of {root}; give one per image, in the order of the file names"
                )
        elif captioned and all(f in captioned and captioned[f].caption for f in self.files):
            self.captions = [captioned[f].read_caption() for f in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def images(self) -> Iterator[np.ndarray]:
        """Images as uint8 [H, W, 3]. Unreadable ones are told and skipped.

        Raises:
          ScoreError: more than one in ten (and more than three) cannot be read.
        """
        notes = Notes(self.folder)
        for position, file in enumerate(self.files):
            try:
                image = np.asarray(read_rgb(file, notes=notes))
            except UNREADABLE as error:
                print(f"skipping {error}", flush=True)
                self.unreadable.append(position)
                if len(self.unreadable) > most_broken(len(self)):
                    count = len(self.unreadable)
                    raise ScoreError(
                        f"{count} of {len(self)} images of {self.folder} cannot be read, the last: "
                        f"{error}"
                    ) from error
                continue
            yield image

    def read_captions(self) -> list[str]:
        """Captions of the images that could be read, after `images` has gone through."""
        skipped = set(self.unreadable)
        return [text for n, text in enumerate(self.captions) if n not in skipped]


def _has(root: Path) -> bool:
    """Whether a folder has captions at all."""
    return bool(find_table(root)) or any(root.rglob("*.txt")) or any(root.rglob("*.caption"))


def read_prompts(file: str) -> list[str]:
    """The lines of a text file, blank ones left out. Raises ScoreError where there are none."""
    if not Path(file).is_file():
        raise ScoreError(f"--prompts {file} is not a file")
    lines = [line.strip() for line in read_text(Path(file)).splitlines()]
    if not any(lines):
        raise ScoreError(f"--prompts {file} has no prompts; write one per line")
    return [line for line in lines if line]


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
