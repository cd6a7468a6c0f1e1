"""The f4 VQGAN: images <-> latents <-> tokens (docs/models/paella.md 5)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.layers import (
    Dense,
    DepthwiseConv,
    Downsample,
    Dtype,
    Upsample,
    pixel_shuffle,
    pixel_unshuffle,
    xavier,
)
from paella_jax.models.quantizer import Quantizer, uniform_codebook
from paella_jax.ops.gelu import gelu
from paella_jax.ops.linear import add_bias, dense
from paella_jax.ops.norm import layer_norm
from paella_jax.ops.strips import in_strips
from paella_jax.typing import Array


class LatentBatchNorm(nn.Module):
    """torch's BatchNorm over the latent channels, float32.

    Not flax's: torch moves the running variance with the unbiased batch variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool = False, settled: Array | None = None) -> Array:
        """Normalises x. `settled` (bool scalar) keeps to the running statistics in training."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        x = x.astype(jnp.float32)
        used_mean, used_variance = mean.value, variance.value
        if train and not self.is_initializing():
            batch_mean = x.mean((0, 1, 2))
            batch_variance = jnp.square(x - batch_mean.reshape(1, 1, 1, -1)).mean((0, 1, 2))
            count = x.size // channels
            unbiased = batch_variance * (count / max(count - 1, 1))
            moved_mean = mean.value + self.momentum * (batch_mean - mean.value)
            moved_variance = variance.value + self.momentum * (unbiased - variance.value)
            keep = jnp.zeros((), bool) if settled is None else settled
            used_mean = jnp.where(keep, mean.value, batch_mean)
            used_variance = jnp.where(keep, variance.value, batch_variance)
            mean.value = jnp.where(keep, mean.value, moved_mean)
            variance.value = jnp.where(keep, variance.value, moved_variance)
        full = lambda v: v.reshape(1, 1, 1, -1)
        x = (x - full(used_mean)) * full(jax.lax.rsqrt(used_variance + self.epsilon) * scale)
        return x + full(bias)


class Matrix(nn.Module):
    """The parameters of `Dense`, for use elsewhere: kernel [inputs, features] and its bias."""

    features: int

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", xavier, (inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def _mlp(
    x: Array, gammas: Array, expand: tuple[Array, Array], contract: tuple[Array, Array]
) -> Array:
    hidden = layer_norm(x) * (1.0 + gammas[3]) + gammas[4]
    hidden = gelu(add_bias(dense(hidden, expand[0]), expand[1]))
    return x + gammas[5] * add_bias(dense(hidden, contract[0]), contract[1])


class VQGANBlock(nn.Module):
    """Depthwise convolution and MLP, each scaled by learned scalars that start at zero.

    At initialisation the block is the identity.
    """

    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        gammas = self.param("gammas", nn.initializers.zeros, (6,)).astype(self.dtype)
        hidden = layer_norm(x) * (1.0 + gammas[0]) + gammas[1]
        conv = DepthwiseConv(
            padding="replicate", implementation=self.depthwise, dtype=self.dtype, name="depthwise"
        )
        x = x + gammas[2] * conv(hidden)
        expand = Matrix(4 * channels, name="expand")(channels)
        contract = Matrix(channels, name="contract")(4 * channels)
        return in_strips(_mlp, x.astype(self.dtype), gammas, expand, contract)


class VQGAN(Quantizer):
    """Encoder, quantiser and decoder. Defaults are the released f4 model.

    Latents and codes are on the raw (BatchNorm) scale here; `scale` and `unscale` convert to the
    scale that Würstchen's Stage B works on.
    """

    levels: int = 2
    bottleneck_blocks: int = 12
    width: int = 384  # channels at the deepest level; halved per level towards the pixels
    latent_channels: int = 4
    codebook_size: int = 8192
    scale_factor: float = 0.3764
    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        widths = [self.width // 2**i for i in reversed(range(self.levels))]
        conv = lambda features, **kwargs: Dense(features, dtype=self.dtype, **kwargs)
        block = lambda: VQGANBlock(self.depthwise, self.dtype)
        self.encoder_in = conv(widths[0])
        self.encoder_downs = [Downsample(w, 4, dtype=self.dtype) for w in widths[1:]]
        self.encoder_blocks = [block() for _ in widths]
        self.encoder_out = conv(self.latent_channels, use_bias=False)
        self.latent_norm = LatentBatchNorm()
        self.codebook = self.param(
            "codebook", uniform_codebook, (self.codebook_size, self.latent_channels)
        )
        self.decoder_in = conv(self.width)
        self.decoder_blocks = [block() for _ in range(self.bottleneck_blocks)]
        self.decoder_ups = [Upsample(w, 4, dtype=self.dtype) for w in reversed(widths[:-1])]
        self.decoder_level_blocks = [block() for _ in widths[:-1]]
        self.decoder_out = conv(3 * 4)

    @property
    def downsampling(self) -> int:
        """Image pixels per token side."""
        return 2**self.levels

    def encode(self, images: Array, train: bool = False, settled: Array | None = None) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> latents float32 [batch, h, w, C].

        Raises:
          ValueError: H or W is not a multiple of `downsampling`.
        """
        self.check_divisible(images)
        x = self.encoder_in(pixel_unshuffle(images, 2).astype(self.dtype))
        x = self.encoder_blocks[0](x)
        for down, block in zip(self.encoder_downs, self.encoder_blocks[1:], strict=True):
            x = block(down(x))
        return self.latent_norm(self.encoder_out(x), train, settled)

    def decode(self, latents: Array) -> Array:
        """Latents or codes [batch, h, w, C] -> float32 images, not clamped to [0, 1]."""
        x = self.decoder_in(latents.astype(self.dtype))
        for block in self.decoder_blocks:
            x = block(x)
        for up, block in zip(self.decoder_ups, self.decoder_level_blocks, strict=True):
            x = block(up(x))
        return pixel_shuffle(self.decoder_out(x), 2).astype(jnp.float32)

    def scale(self, latents: Array) -> Array:
        """Raw latents -> the scale of latent diffusion."""
        return latents / self.scale_factor

    def unscale(self, latents: Array) -> Array:
        """The inverse of `scale`."""
        return latents * self.scale_factor
