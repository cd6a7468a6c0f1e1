"""Patch discriminator of the VQGAN (docs/models/paella.md 5)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from paella_jax.models.layers import xavier
from paella_jax.typing import Array


class Discriminator(nn.Module):
    """Spectrally normalised stride-2 convolutions -> one logit per patch.

    The reference ends in a sigmoid; here that is part of the loss. Power-iteration state lives in
    the collection "batch_stats". Images of any size above 2**depth pixels fit: 32-pixel images give
    4x4 logits at depth 3 and are too small for depth 5, where one pixel would be left to normalise.
    """

    depth: int = 6  # number of stride-2 convolutions
    width: int = 512  # channels of the widest map; halved towards the pixels

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> float32 logits [batch, h, w].

        h = H / 2**depth, rounded up. `train` advances the power iteration by one step; the
        collection "batch_stats" must then be mutable.

        Raises:
          ValueError: the image or the width is too small for the depth.
        """
        halvings = max(self.depth - 3, 3)
        self._check(images.shape, halvings)
        x = images
        for index in range(self.depth):
            features = self.width // 2 ** max(halvings - index, 0)
            conv = nn.Conv(
                features, (3, 3), (2, 2), padding=1, kernel_init=xavier, name=f"conv_{index}"
            )
            x = nn.SpectralNorm(conv, name=f"spectral_{index}")(x, update_stats=train)
            if index > 0:
                x = nn.InstanceNorm(
                    use_bias=False, use_scale=False, epsilon=1e-5, use_fast_variance=False
                )(x)
            x = nn.leaky_relu(x, 0.2)
        logits = nn.Conv(1, (1, 1), kernel_init=xavier, name="logits")(x)
        return logits[..., 0].astype(jnp.float32)

    def _check(self, shape: tuple[int, ...], halvings: int) -> None:
        if self.depth < 1:
            raise ValueError(f"discriminator depth must be at least 1, got {self.depth}")
        if self.width < 2**halvings:
            raise ValueError(
                f"discriminator width {self.width} must be at least {2**halvings} at depth "
                f"{self.depth}: it is halved {halvings} times towards the pixels"
            )
        final = np.ceil(np.array(shape[1:3]) / 2**self.depth).astype(int)
        # Parameter shapes do not depend on the image size: any image will do to initialise.
        if self.depth > 1 and final.prod() < 2 and not self.is_initializing():
            raise ValueError(
                f"image size {shape[1]}x{shape[2]} leaves a single pixel after {self.depth} "
                "halvings, which instance norm would erase; lower the discriminator's depth or use "
                f"images larger than {2**self.depth} pixels"
            )
