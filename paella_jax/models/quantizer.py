"""What both tokenizers share: the codebook, the way to tokens and back, and the training pass."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.ops.codebook import nearest_code
from paella_jax.typing import Array


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
    codes: Array  # [batch, h, w, C], of the tokens
    tokens: Array
    codebook_loss: Array
    commitment_loss: Array


def is_decoder(name: str) -> bool:
    """Whether a top-level parameter of a tokenizer belongs to its decoder.

    All others (encoder, quantiser, codebook) decide which tokens an image has.
    """
    return name.startswith("decoder_") or name == "codes_to_latents"


def uniform_codebook(key: Array, shape: tuple[int, int]) -> Array:
    """The usual start, U(-1/codes, 1/codes): float32 [codes, C]."""
    return jax.random.uniform(key, shape, jnp.float32, -1.0 / shape[0], 1.0 / shape[0])


class Quantizer(nn.Module):
    """Base of a tokenizer. A subclass brings `codebook` [codes, C], `encode` and `decode`."""

    @property
    def downsampling(self) -> int:
        """Image pixels per token side."""
        raise NotImplementedError

    def encode(self, images: Array, train: bool = False, settled: Array | None = None) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> float32 latents [batch, h, w, C]."""
        raise NotImplementedError

    def decode(self, latents: Array) -> Array:
        """Latents or codes [batch, h, w, C] -> float32 images, not clamped to [0, 1]."""
        raise NotImplementedError

    def check_divisible(self, images: Array) -> None:
        """Raises ValueError where a side of the images is no multiple of `downsampling`."""
        height, width = images.shape[1:3]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"image size {height}x{width} must be a multiple of {self.downsampling} on both "
                "sides; crop or pad it"
            )

    def quantize(self, latents: Array) -> Quantized:
        """Latents [batch, h, w, C] -> nearest codes, tokens and losses.

        Which loss weighs .25 differs: the paper and Paella weigh the commitment loss, aMUSEd's
        code the codebook loss (docs/models/muse.md 2.5). Training sets both weights.
        """
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
          train: use and update batch statistics, where the network has any (collection
            "batch_stats" must then be mutable).
          settled: bool scalar; True uses the running statistics and no longer updates them.
        """
        latents = self.encode(images, train, settled)
        result = self.quantize(latents)
        inputs = result.codes
        if quantized is not None:
            inputs = jnp.where(quantized.reshape(-1, 1, 1, 1), inputs, latents)
        return Reconstruction(
            self.decode(inputs),
            latents,
            jax.lax.stop_gradient(result.codes),
            result.tokens,
            result.codebook_loss,
            result.commitment_loss,
        )
