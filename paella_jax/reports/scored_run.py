"""What a scored run is, and its images as streams: drawn, or encoded and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.loader import Source
from paella_jax.images.write import to_uint8
from paella_jax.reports.flags import LEAST
from paella_jax.reports.gathered import ScoreError, first
from paella_jax.reports.group_scores import Grouping, Said
from paella_jax.reports.scored_data import OwnImages

SHOWN = 12  # images in scores.png
AXES = ("steps", "guidance")
# Images [n, H, W, 3] in [0, 1], how many of them count, and the seed of the first, where chance has
# a part -> those, encoded and decoded. The rest fill up the last batch.
RoundTrip = Callable[[np.ndarray, int, int], np.ndarray]


@dataclass(frozen=True)
class Asked:
    """What is to be scored, as the command's flags say it.

    Attributes:
      checkpoint: run folder.
      out: folder of the report.
      data: place of captioned images of any form; empty is the run's own data.
      prompts: file of captions to draw instead of the held-back ones.
      num_images: at most so many, of the prompts as well; None is the config's number, and all
        prompts.
      training_images: of the run's own, searched for copies; 0 leaves them out.
      super_resolution: run that enlarges what the checkpoint draws.
      perceptual: file of VGG weights, for LPIPS.
      axes: of the curves, among `AXES`.
      steps: on the axis of that name.
      guidance: likewise.
      overrides: of the run's data block, as "--config.data.FIELD=VALUE".
      groups: what images are marked by, as `grouping` reads it; empty is the run's own.
    """

    checkpoint: Path
    out: Path
    data: str = ""
    prompts: str = ""
    num_images: int | None = None
    training_images: int = 2000
    super_resolution: str = ""
    perceptual: str = ""
    axes: Sequence[str] = ()
    steps: Sequence[int] = ()
    guidance: Sequence[float] = ()
    overrides: Sequence[str] = ()
    groups: str = ""

    def __post_init__(self) -> None:
        for name in ("num_images", "training_images"):
            value, least = getattr(self, name), LEAST[name]
            if value is not None and value < least:
                raise ScoreError(f"--{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Subject:
    """A run with the data it is scored on.

    Attributes:
      config: of the run.
      held: the images that are scored: the validation part of the run's own, or others.
      others: images of the same place that are not scored; None where all are.
      own: the run's own training images, and where others are scored what it holds back of them.
      count: of images to score.
      batch: images drawn at a time.
      grouping: what drawn images are marked by.
      notes: what the report has to say of the data.
      prompts: to draw instead of the held-back captions; none where those are drawn.
    """

    config: ConfigDict
    held: Source
    others: Source | None
    own: OwnImages
    count: int
    batch: int
    grouping: Grouping
    notes: Sequence[str] = ()
    prompts: Sequence[str] = ()

    def samples(self) -> list[int]:
        """Which of the held-back samples are scored, evenly spaced."""
        return first(range(len(self.held)), self.count)


def shown_of(count: int) -> list[int]:
    """Which of so many images scores.png shows, evenly spaced."""
    return first(range(count), SHOWN)


def draw(pipe: Any, captions: Sequence[str], batch: int, **settings: Any) -> Iterator[np.ndarray]:
    """One uint8 image [H, W, 3] per caption; the n-th has seed n, whatever the batches are.

    The last batch is filled up, so that one program serves.
    """
    for start in range(0, len(captions), batch):
        some = list(captions[start : start + batch])
        filled = some + [some[0]] * (batch - len(some))
        seeds = list(range(start, start + batch))
        images = pipe.generate(filled, seed=seeds, batch_size=batch, **settings).images
        yield from to_uint8(np.asarray(images)[: len(some)])


def rebuild(
    run: RoundTrip, source: Source, chosen: Sequence[int], batch: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Images of a source through a network and back, uint8 [H, W, 3]; the n-th has seed + n."""
    for start in range(0, len(chosen), batch):
        some = list(chosen[start : start + batch])
        filled = some + [some[0]] * (batch - len(some))
        images = np.stack([source[n]["image"] for n in filled]).astype(np.float32) / 255.0
        yield from to_uint8(run(images, len(some), seed + start))


def images_of(
    source: Source, chosen: Sequence[int], said: list[Said] | None = None
) -> Iterator[np.ndarray]:
    """The images of some samples, uint8 [H, W, 3]; what is said of them is put into `said`."""
    for n in chosen:
        sample = source[n]
        if said is not None:
            said.append(Said(sample["caption"], sample.get("group", "")))
        yield sample["image"]
