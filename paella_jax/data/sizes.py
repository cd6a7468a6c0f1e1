"""What the size of an image means to a network."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError

AESTHETIC_SCORE = (
    6.0  # what aMUSEd's training and sampling give for every image (docs/models/muse.md 2.8)
)


def whole_image_conds(height: int, width: int) -> np.ndarray:
    """aMUSEd's micro-conditions of an image that is not cropped, float32 [5]."""
    return np.array([width, height, 0, 0, AESTHETIC_SCORE], np.float32)


def check_sizes(data: ConfigDict, divisor: int, why: str) -> None:
    """Raises ConfigError where an image side of the data does not divide; `why` names what by."""
    for size in ((data.image_size, data.image_size), *data.get("buckets", ())):
        if any(side % divisor for side in size):
            raise ConfigError(
                f"image size {size[0]}x{size[1]} (data.image_size or data.buckets) must be a "
                f"multiple of {divisor} on both sides ({why})"
            )
