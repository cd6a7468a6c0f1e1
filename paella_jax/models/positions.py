"""Fixed position vectors for networks that were published without any.

On the released models' maps zero padding and depth tell the positions apart. On the few positions
of a small map they hardly do: a map that is the same everywhere stays so (docs/results.md 5).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from paella_jax.typing import Array

LONGEST = 16.0  # positions: of the slowest wave, in radians


def with_positions(x: Array) -> Array:
    """A map [batch, height, width, channels] plus the vectors of its places, in its dtype."""
    return x + position_map(*x.shape[1:]).astype(x.dtype)


def position_map(height: int, width: int, channels: int) -> Array:
    """Sinusoids of the row in one half of the channels, of the column in the other.

    They are those of Vaswani et al. 2017, section 3.5, on two axes and with shorter waves; nothing
    is learned, so any map has them.

    Returns:
      float32 [1, height, width, channels] of about unit size (root mean square).

    Raises:
      ValueError: channels are not divisible by four.
    """
    if channels % 4:
        raise ValueError(f"position vectors need a width that is divisible by 4, got {channels}")
    waves = channels // 4
    speed = LONGEST ** -(np.arange(waves) / waves)

    def along(length: int) -> np.ndarray:
        angle = np.arange(length)[:, None] * speed
        return math.sqrt(2.0) * np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    rows = np.broadcast_to(along(height)[:, None], (height, width, channels // 2))
    columns = np.broadcast_to(along(width)[None], (height, width, channels // 2))
    return jnp.asarray(np.concatenate([rows, columns], axis=-1)[None], jnp.float32)
