"""aMUSEd's tokenizer, diffusers' VQModel: a ResNet VQGAN (docs/models/muse.md 2.5)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.layers import Dense, Dtype
from paella_jax.models.quantizer import Quantizer, uniform_codebook
from paella_jax.models.transformer_layers import SeparateAttention
from paella_jax.ops.upsampled_conv import upsampled_conv
from paella_jax.typing import Array

# torch's default, which the reference leaves in place: U(-b, b) with b = 1 / sqrt(inputs).
torch_default = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def _conv(features: int, dtype: Dtype, name: str | None = None, resample: str = "") -> nn.Conv:
    # Shrinking pads the far sides alone, where symmetric padding would shift the image.
    padding = ((0, 1), (0, 1)) if resample == "down" else ((1, 1), (1, 1))
    strides = (2, 2) if resample == "down" else (1, 1)
    return nn.Conv(
        features,
        (3, 3),
        strides,
        padding=padding,
        kernel_init=torch_default,
        dtype=dtype,
        conv_general_dilated=upsampled_conv if resample == "up" else None,
        name=name,
    )


def _group_norm(groups: int, name: str | None = None) -> nn.GroupNorm:
    """Group norm in float32; flax's one-pass variance loses digits where the mean is large."""
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, name=name)


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the shortcut is a projection where the width changes."""

    features: int
    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = x
        for number in (1, 2):
            hidden = nn.silu(_group_norm(self.groups, f"norm_{number}")(hidden))
            hidden = _conv(self.features, self.dtype, f"conv_{number}")(hidden)
        if x.shape[-1] != self.features:
            x = Dense(self.features, kernel_init=torch_default, dtype=self.dtype, name="shortcut")(
                x
            )
        return x + hidden


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels, behind a norm."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        y = _group_norm(self.groups, "norm")(x).astype(self.dtype)
        y = rearrange(y, "b h w c -> b (h w) c")
        y = SeparateAttention(1, use_bias=True, dtype=self.dtype, name="attention")(y, y)
        return x + rearrange(y, "b (h w) c -> b h w c", h=height, w=width)


class Level(nn.Module):
    """Resnet blocks of one resolution, then a change of resolution: "down", "up" or ""."""

    features: int
    blocks: int
    groups: int
    attention: bool = False  # after every block
    resample: str = ""
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(self.blocks):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"block_{index}")(x)
            if self.attention:
                x = PixelAttention(self.groups, self.dtype, name=f"attention_{index}")(x)
        if self.resample:
            x = _conv(self.features, self.dtype, "resample", self.resample)(x)
        return x


class Middle(nn.Module):
    """Two resnet blocks, with attention between them where asked for."""

    features: int
    groups: int
    attention: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResnetBlock(self.features, self.groups, self.dtype, name="block_0")(x)
        if self.attention:
            x = PixelAttention(self.groups, self.dtype, name="attention_0")(x)
        return ResnetBlock(self.features, self.groups, self.dtype, name="block_1")(x)


class VQModel(Quantizer):
    """Encoder, quantiser and decoder. Defaults are aMUSEd's f16 model.

    The decoder's levels mirror the encoder's and have one block more each, unless they are given
    sizes of their own (MUSE's larger decoder, docs/models/muse.md 1.4). Pixels are in [0, 1] on
    both sides.
    """

    widths: tuple[int, ...] = (128, 256, 256, 512, 768)  # channels per level, finest first
    blocks_per_level: int = 2
    latent_channels: int = 64
    code_channels: int = 64
    codebook_size: int = 8192
    norm_groups: int = 32
    middle_attention: bool = False
    encoder_attention: tuple[bool, ...] = (False,) * 5  # per level, finest first
    decoder_attention: tuple[bool, ...] = (False,) * 5  # per level, finest first
    decoder_widths: tuple[int, ...] = ()  # finest first; empty: `widths`
    decoder_blocks_per_level: int = 0  # 0: one more than the encoder's
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.check()
        dtype, groups = self.dtype, self.norm_groups
        decoder_widths, decoder_blocks = self.decoder_sizes
        middle = lambda width: Middle(width, groups, self.middle_attention, dtype)
        project = lambda features: Dense(features, kernel_init=torch_default, dtype=dtype)
        last = len(self.widths) - 1
        self.encoder_in = _conv(self.widths[0], dtype)
        self.encoder_levels = [
            Level(
                width,
                self.blocks_per_level,
                groups,
                self.encoder_attention[level],
                "down" if level < last else "",
                dtype,
            )
            for level, width in enumerate(self.widths)
        ]
        self.encoder_middle = middle(self.widths[-1])
        self.encoder_norm = _group_norm(groups)
        self.encoder_out = _conv(self.latent_channels, dtype)
        self.latents_to_codes = project(self.code_channels)
        self.codebook = self.param(
            "codebook", uniform_codebook, (self.codebook_size, self.code_channels)
        )
        self.codes_to_latents = project(self.latent_channels)
        self.decoder_in = _conv(decoder_widths[-1], dtype)
        self.decoder_middle = middle(decoder_widths[-1])
        # Deepest first, the order they run in.
        self.decoder_levels = [
            Level(
                decoder_widths[level],
                decoder_blocks,
                groups,
                self.decoder_attention[level],
                "up" if level > 0 else "",
                dtype,
            )
            for level in reversed(range(last + 1))
        ]
        self.decoder_norm = _group_norm(groups)
        self.decoder_out = _conv(3, dtype)

    def check(self) -> None:
        """Raises ValueError where fields do not fit together."""
        for name in ("encoder_attention", "decoder_attention", "decoder_widths"):
            given = getattr(self, name)
            if len(given) != len(self.widths) and not (name == "decoder_widths" and not given):
                raise ValueError(f"{name} {given} needs one entry per level of {self.widths}")
        bad = [w for w in (*self.widths, *self.decoder_widths) if w % self.norm_groups]
        if bad:
            raise ValueError(f"{self.norm_groups} norm groups do not divide the widths {bad}")

    @property
    def decoder_sizes(self) -> tuple[tuple[int, ...], int]:
        """The decoder's channels per level, finest first, and blocks per level."""
        blocks = self.decoder_blocks_per_level or self.blocks_per_level + 1
        return tuple(self.decoder_widths or self.widths), blocks

    @property
    def downsampling(self) -> int:
        """Image pixels per token side."""
        return 2 ** (len(self.widths) - 1)

    def encode(self, images: Array, train: bool = False, settled: Array | None = None) -> Array:
        """Images [batch, H, W, 3] in [0, 1] -> float32 [batch, h, w, code_channels].

        `train` and `settled` change nothing: this network keeps no statistics.

        Raises:
          ValueError: H or W is not a multiple of `downsampling`.
        """
        self.check_divisible(images)
        x = self.encoder_in(images.astype(self.dtype))
        for level in self.encoder_levels:
            x = level(x)
        x = nn.silu(self.encoder_norm(self.encoder_middle(x)))
        return self.latents_to_codes(self.encoder_out(x)).astype(jnp.float32)

    def decode(self, latents: Array) -> Array:
        """Latents or codes [batch, h, w, code_channels] -> float32 images, not clamped."""
        x = self.decoder_in(self.codes_to_latents(latents.astype(self.dtype)))
        x = self.decoder_middle(x)
        for level in self.decoder_levels:
            x = level(x)
        return self.decoder_out(nn.silu(self.decoder_norm(x))).astype(jnp.float32)
