"""What a repetition is asked for, and a run to train for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Wish:
    """What is to be repeated.

    Attributes:
      config: of the run; its seed and the runs it stands on are put in.
      seeds: of the trainings.
      tokenizers: run folders to stand on; none: they are trained.
      low_tokenizers: the same for a super-resolution's small images, one for each tokenizer.
      stage_bs: the same for Stage C, in place of tokenizers.
      direct: whether Stage C's seeds train a direct decoder too.
      num_images: captions scored in each split.
      tuning_images: captions for choosing the sampler's settings.
      tasks: whether the image tasks are scored too.
    """

    config: ConfigDict
    seeds: tuple[int, ...] = (0, 1, 2)
    tokenizers: tuple[str, ...] = ()
    low_tokenizers: tuple[str, ...] = ()
    stage_bs: tuple[str, ...] = ()
    direct: bool = False
    num_images: int = 256
    tuning_images: int = 96
    tasks: bool = False


class Training(NamedTuple):
    """A run to train, and its folder."""

    workdir: Path
    config: ConfigDict
