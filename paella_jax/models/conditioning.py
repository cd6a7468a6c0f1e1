"""What an image is conditioned on, as one pytree that every family reads."""

from __future__ import annotations

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class Conditioning:
    """Every field may be None; masks are True where a position is real.

    Attributes:
      text: float [batch, length, text_width], one vector per text token.
      text_mask: bool [batch, length]; None means every position is real.
      text_pooled: float [batch, clip_width], one vector per caption.
      image_pooled: float [batch, images, clip_width], zero or more image embeddings per sample.
      image_mask: bool [batch, images]; None means every embedding is real.
    """

    text: Array | None = None
    text_mask: Array | None = None
    text_pooled: Array | None = None
    image_pooled: Array | None = None
    image_mask: Array | None = None
