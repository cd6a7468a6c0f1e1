"""The f4 VQGAN: images <-> latents <-> tokens (reference/paella.md 5)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.layers import (
    Dense,
    DepthwiseConv,
    Downsample,
    Dtype,
    Upsample,
    gelu,
    layer_norm,
    pixel_shuffle,
    pixel_unshuffle,
)
from paella_jax.ops.codebook import nearest_code

Array = jax.Array


class Quantized(NamedTuple):
    """Result of the quantiser."""

    codes: Array  # [batch, h, w, C], gradient passes straight through to the latents
    tokens: Array  # int32 [batch, h, w]
    codebook_loss: Array  # scalar, pulls codes to latents
    commitment_loss: Array  # scalar, pulls latents to codes


class Reconstruction(NamedTuple):
    """Result of a training pass."""

    images: Array  # [batch, H, W, 3], not clamped
    latents: Array  # [batch, h, w, C], before quantisation
    tokens: Array
    codebook_loss: Array
    commitment_loss: Array


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
        hidden = layer_norm(x) * (1.0 + gammas[3]) + gammas[4]
        hidden = gelu(Dense(4 * channels, dtype=self.dtype, name="expand")(hidden))
        return x + gammas[5] * Dense(channels, dtype=self.dtype, name="contract")(hidden)


class VQGAN(nn.Module):
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
            "codebook", self._codebook_init, (self.codebook_size, self.latent_channels)
        )
        self.decoder_in = conv(self.width)
        self.decoder_blocks = [block() for _ in range(self.bottleneck_blocks)]
        self.decoder_ups = [Upsample(w, 4, dtype=self.dtype) for w in reversed(widths[:-1])]
        self.decoder_level_blocks = [block() for _ in widths[:-1]]
        self.decoder_out = conv(3 * 4)

    @staticmethod
    def _codebook_init(key: Array, shape: tuple[int, int]) -> Array:
        return jax.random.uniform(key, shape, jnp.float32, -1.0 / shape[0], 1.0 / shape[0])

    @property
    def downsampling(self) -> int:
        """Image pixels per token side."""
        return 2**self.levels

    def encode(self, images: Array, train: bool = False, settled: Array | None = None) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> latents float32 [batch, h, w, C].

        Raises:
          ValueError: H or W is not a multiple of `downsampling`.
        """
        height, width = images.shape[1:3]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"image size {height}x{width} must be a multiple of {self.downsampling} on both "
                "sides; crop or pad it"
            )
        x = self.encoder_in(pixel_unshuffle(images, 2).astype(self.dtype))
        x = self.encoder_blocks[0](x)
        for down, block in zip(self.encoder_downs, self.encoder_blocks[1:], strict=True):
            x = block(down(x))
        return self.latent_norm(self.encoder_out(x), train, settled)

    def quantize(self, latents: Array) -> Quantized:
        """Latents [batch, h, w, C] -> nearest codes, tokens and losses."""
        fixed = jax.lax.stop_gradient
        tokens = self._nearest(fixed(latents))
        codes = self.lookup(tokens)
        return Quantized(
            # The bracket is exactly zero, so the value is the code itself, without rounding.
            codes=fixed(codes) + (latents - fixed(latents)),
            tokens=tokens,
            codebook_loss=jnp.square(codes - fixed(latents)).mean(),
            commitment_loss=jnp.square(latents - fixed(codes)).mean(),
        )

    def _nearest(self, latents: Array) -> Array:
        # At an accelerator's default (bfloat16) precision close codes would be confused.
        with jax.default_matmul_precision("highest"):
            return nearest_code(latents, self.codebook)

    def lookup(self, tokens: Array) -> Array:
        """Tokens [batch, h, w] -> codes [batch, h, w, C]."""
        return jnp.take(self.codebook, tokens, axis=0)

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

    def encode_tokens(self, images: Array) -> Array:
        """Images -> int32 tokens [batch, h, w]."""
        return self._nearest(self.encode(images))

    def decode_tokens(self, tokens: Array) -> Array:
        """Tokens -> images clamped to [0, 1]."""
        return jnp.clip(self.decode(self.lookup(tokens)), 0.0, 1.0)

    def __call__(
        self,
        images: Array,
        quantized: Array | None = None,
        train: bool = False,
        settled: Array | None = None,
    ) -> Reconstruction:
        """One training pass.

        Args:
          images: [batch, H, W, 3] in [0, 1].
          quantized: bool [batch]; False samples are decoded from their raw latents.
          train: use and update batch statistics (collection "batch_stats" must be mutable).
          settled: bool scalar; True uses the running statistics and leaves them as they are.
        """
        latents = self.encode(images, train, settled)
        result = self.quantize(latents)
        inputs = result.codes
        if quantized is not None:
            inputs = jnp.where(quantized.reshape(-1, 1, 1, 1), inputs, latents)
        return Reconstruction(
            self.decode(inputs),
            latents,
            result.tokens,
            result.codebook_loss,
            result.commitment_loss,
        )
