"""Patch discriminator of the VQGAN (reference/paella.md 5)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.layers import xavier

Array = jax.Array


class Discriminator(nn.Module):
    """Spectrally normalised stride-2 convolutions -> one logit per patch.

    The reference ends in a sigmoid; here that is part of the loss. Power-iteration state lives in
    the collection "batch_stats". A map of one pixel has no instance statistics: with depth d, use
    images of at least 2**(d+1) pixels.
    """

    depth: int = 6
    width: int = 512

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> float32 logits [batch, h, w]."""
        halvings = max(self.depth - 3, 3)
        x = images
        for index in range(self.depth):
            features = self.width // 2 ** max(halvings - index, 0)
            conv = nn.Conv(
                features, (3, 3), (2, 2), padding=1, kernel_init=xavier, name=f"conv_{index}"
            )
            x = nn.SpectralNorm(conv, name=f"spectral_{index}")(x, update_stats=train)
            if index > 0:
                x = nn.InstanceNorm(use_bias=False, use_scale=False, epsilon=1e-5)(x)
            x = nn.leaky_relu(x, 0.2)
        logits = nn.Conv(1, (1, 1), kernel_init=xavier, name="logits")(x)
        return logits[..., 0].astype(jnp.float32)
