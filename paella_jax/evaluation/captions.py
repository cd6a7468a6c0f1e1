"""Which captions of the embedded data are scored, and which are for choosing settings alone."""

from __future__ import annotations

import zlib

import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.shapes import get_spec
from paella_jax.data.shapes_captions import caption
from paella_jax.data.sources import ShapesSource

CAPTION_SEED = 101  # the same for everything that is compared
TUNING_PARTS = 3  # one part in so many of the validation captions is for tuning alone
SEARCHED = 100  # samples looked at for each one wanted


def scored_samples(
    spec: str, split: str, count: int, for_tuning: bool | None = None, distinct: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Images and captions of a split, or of its part (not) for tuning, in the split's order.

    Args:
      spec: variant of the embedded data.
      split: of the source.
      count: how many.
      for_tuning: None takes both parts.
      distinct: take each caption once, as long as the data has others.

    Returns:
      uint8 [count, height, width, 3], and the captions.

    Raises:
      ConfigError: the data has too few.
    """
    source = ShapesSource(spec, split, SEARCHED * count, CAPTION_SEED)
    first: dict[str, int] = {}
    again: list[tuple[int, str]] = []
    for index in range(len(source)):
        text = caption(source.scene(index), get_spec(spec))
        if for_tuning not in (None, zlib.crc32(text.encode()) % TUNING_PARTS == 0):
            continue
        if text in first:
            again.append((index, text))
        else:
            first[text] = index
        if len(first) + (0 if distinct else len(again)) == count:
            break
    new = [(index, text) for text, index in first.items()]
    chosen = sorted((new + again)[:count])
    if len(chosen) < count:
        raise ConfigError(f"data.spec={spec} has too few captions in its {split} split")
    images = np.stack([source[index]["image"] for index, _ in chosen])
    return images, [text for _, text in chosen]
