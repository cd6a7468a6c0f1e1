"""Which captions of the embedded data are scored, and which are for choosing settings alone."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_captions import caption
from paella_jax.data.sources import ShapesSource
from paella_jax.encoders.text import UNITS, make_tokenizer

CAPTION_SEED = 101  # the same for everything that is compared
TUNING_PARTS = 3  # one part in so many of the validation captions is for tuning alone
SEARCHED = 100  # samples looked at for each one wanted
PATIENCE = 50  # samples without a new caption, for each one known, after which there is none


def scored_samples(
    spec: str, split: str, count: int, for_tuning: bool | None = None, distinct: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Images and captions of a split, or of its part (not) for tuning, in the split's order.

    Args:
      spec: variant of the embedded data.
      split: of the source.
      count: how many.
      for_tuning: None takes both parts.
      distinct: take every caption once.

    Returns:
      uint8 [count, height, width, 3], and the captions.

    Raises:
      ConfigError: the data has too few.
    """
    source = ShapesSource(spec, split, SEARCHED * count, CAPTION_SEED)
    chosen: list[int] = []
    captions: list[str] = []
    known: set[str] = set()
    for index in range(len(source)):
        text = caption(source.scene(index), get_spec(spec))
        if distinct and index > PATIENCE * (len(known) + 1) + (chosen[-1] if chosen else 0):
            break
        own_part = zlib.crc32(text.encode()) % TUNING_PARTS == 0
        if for_tuning in (None, own_part) and not (distinct and text in known):
            known.add(text)
            chosen.append(index)
            captions.append(text)
        if len(chosen) == count:
            return np.stack([source[index]["image"] for index in chosen]), captions
    kind = "different captions" if distinct else "captions"
    raise ConfigError(
        f"data.spec={spec} has {len(chosen)} {kind} for this part of its {split} split, but "
        f"{count} are to be measured: take fewer, or let captions come several times"
    )


def check_lengths(captions: Sequence[str], text: ConfigDict) -> None:
    """Checks that captions fit into a run's `config.text`; a given folder's tokenizer is not read.

    Raises:
      ConfigError: one is too long; the message says which length fits.
    """
    if text.folder:
        return
    units = text.get("units", "bytes")
    tokenizer = make_tokenizer(UNITS[units], "", sys.maxsize)
    longest = int(tokenizer(captions)[1].sum(1).max())
    if longest > text.max_length:
        raise ConfigError(
            f"a caption to be scored has {longest} {units} with its end, text.max_length is "
            f"{text.max_length}; set text.max_length={longest}"
        )
