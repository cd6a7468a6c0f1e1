"""Stage C's latents -> image without Stage B: shows how much of an image the latents hold.

Würstchen appendix D decodes them with a small network too. It is a yardstick, not a stage: trained
with the squared error, it paints the mean of what the latents leave open.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.layers import Dense, Dtype, Upsample
from paella_jax.models.vqgan import VQGANBlock
from paella_jax.typing import Array


class DirectDecoder(nn.Module):
    """Convolution blocks and `doublings` upsamplings by two; the width halves with each."""

    width: int = 128  # channels at the latents' size
    blocks: int = 2  # at every size
    doublings: int = 3
    depthwise: str = "auto"  # implementation of ops/depthwise.py
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, latents: Array, height: int, width: int) -> Array:
        """Raw latents [batch, h, w, C] -> float32 images [batch, height, width, 3], not clipped.

        The last map is resized (bilinear) where height and width are not h and w doubled.
        """
        x = Dense(self.width, dtype=self.dtype, name="input")(latents.astype(self.dtype))
        for level in range(self.doublings + 1):
            if level > 0:
                features = max(16, self.width // 2**level)
                x = Upsample(features, 4, dtype=self.dtype, name=f"upsample_{level}")(x)
            for block in range(self.blocks):
                x = VQGANBlock(self.depthwise, self.dtype, name=f"level_{level}_block_{block}")(x)
        x = Dense(3, dtype=self.dtype, name="output")(x).astype(jnp.float32)
        shape = (x.shape[0], height, width, 3)
        return x if x.shape == shape else jax.image.resize(x, shape, "bilinear")
