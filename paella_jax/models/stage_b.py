"""Würstchen's Stage B: compressor latents -> Stage A latents (docs/models/wuerstchen.md 4)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.antialias_resize import antialias_resize
from paella_jax.models.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    LateSkipConvBlock,
    TimestepBlock,
)
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.layers import (
    Dense,
    Downsample,
    Dtype,
    Upsample,
    layer_norm,
    timestep_embedding,
)
from paella_jax.models.paella import PatchEmbedding, PatchOutput
from paella_jax.typing import Array


class StageB(nn.Module):
    """Predicts the noise in Stage A's unquantised latents. Defaults are the released v2 model."""

    latent_channels: int = 4
    patch_size: int = 2
    time_width: int = 64  # timestep embedding width
    cond_width: int = 1024  # width of the text sequence and of the guide maps
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # channels per level, finest first
    depths: tuple[int, ...] = (4, 4, 14, 4)  # repetitions of the level's pattern
    num_heads: tuple[int, ...] = (0, 10, 20, 20)  # per level; ignored without A
    patterns: tuple[str, ...] = ("CT", "CTA", "CTA", "CTA")  # blocks of one repetition: C, T, A, F
    inject: tuple[bool, ...] = (False, True, True, True)  # levels whose C blocks see the guide
    guide_channels: int = 16
    kernel_size: int = 3  # depthwise convolution
    dropout: float = 0.1
    self_attention: bool = True
    remat: bool = False  # recompute block activations in the backward pass
    depthwise: str = "auto"  # see ops/depthwise.py
    attention: str | None = None  # jax.nn.dot_product_attention implementation
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        return_parts: bool = False,
    ) -> Array | tuple[Array, Array]:
        """The predicted noise (x - a) / b with b in [0.001, 0.999]; 2x at initialisation.

        Args:
          x: float [batch, h, w, latent_channels], noised Stage A latents divided by 0.3764; h and
            w divisible by `grid_divisor`.
          t: float32 [batch] in [0, 1], 1 is all noise.
          cond: `text` is needed; `text_mask` and `text_weights` are honoured. `guide` may have any
            size, None stands for zeros. The rest is ignored.
          deterministic: switches dropout off.
          return_parts: return (a, b) instead.

        Returns:
          float32 [batch, h, w, latent_channels], or two of them.

        Raises:
          ValueError: sizes that do not fit each other, or a missing text.
        """
        self._check_fields()
        self._check_inputs(x, cond)
        normal = nn.initializers.normal(0.02)
        text = Dense(self.cond_width, kernel_init=normal, dtype=self.dtype, name="text")(cond.text)
        inputs = (timestep_embedding(t, self.time_width), layer_norm(text), cond, deterministic)
        hidden = PatchEmbedding(self.widths[0], self.patch_size, self.dtype, name="embedding")(x)
        skips = []
        for level, width in enumerate(self.widths):
            if level > 0:
                down = Downsample(width, dtype=self.dtype, name=f"down_{level}_downsample")
                hidden = down(layer_norm(hidden))
            hidden = self._level(hidden, None, "down", level, *inputs)
            skips.append(hidden)
        deepest = len(self.widths) - 1
        for level in reversed(range(len(self.widths))):
            skip = skips[level] if level < deepest else None
            hidden = self._level(hidden, skip, "up", level, *inputs)
            if level > 0:
                width = self.widths[level - 1]
                up = Upsample(width, dtype=self.dtype, name=f"up_{level}_upsample")
                hidden = up(layer_norm(hidden))
        # The head divides by b: from here on float32, whatever the compute dtype.
        head = PatchOutput(2 * self.latent_channels, self.patch_size, name="output")
        a, b = jnp.split(head(hidden.astype(jnp.float32)), 2, axis=-1)
        b = 0.998 * nn.sigmoid(b) + 0.001
        return (a, b) if return_parts else (x.astype(jnp.float32) - a) / b

    def _guide_maps(
        self, shape: tuple[int, ...], side: str, level: int, cond: Conditioning
    ) -> tuple[Array, ...]:
        """The guide at a level's size [batch, h, w, cond_width], shared by its C blocks."""
        if not self.inject[level]:
            return ()
        batch, height, width = shape[:3]
        guide = cond.guide
        if guide is None:
            guide = jnp.zeros((batch, 1, 1, self.guide_channels))
        mapper = Dense(
            self.cond_width,
            kernel_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name=f"{side}_{level}_guide",
        )
        return (mapper(antialias_resize(guide, height, width)),)

    def _level(
        self,
        x: Array,
        skip: Array | None,
        side: str,
        level: int,
        time: Array,
        sequence: Array,
        cond: Conditioning,
        deterministic: bool,
    ) -> Array:
        """`depths[level]` repetitions of the level's block pattern; only the first takes a skip."""
        guide = self._guide_maps(x.shape, side, level, cond)
        for index, kind in enumerate(self.patterns[level] * self.depths[level]):
            block = self._block(kind, level, f"{side}_{level}_block_{index}")
            if kind == "C":
                first = (skip,) if skip is not None and index == 0 else ()
                x = block(x, (*first, *guide), deterministic)
            elif kind == "T":
                x = block(x, time)
            elif kind == "A":
                x = block(x, sequence, cond.text_mask, cond.text_weights, deterministic)
            else:
                x = block(x, deterministic)
        return x

    def _block(self, kind: str, level: int, name: str) -> nn.Module:
        scale = math.sqrt(1.0 / sum(self.depths))
        # `deterministic` is a Python bool and must stay one under remat (counted with self).
        wrap = lambda cls, static: nn.remat(cls, static_argnums=static) if self.remat else cls
        if kind == "C":
            return wrap(LateSkipConvBlock, (3,))(
                self.kernel_size, scale, self.dropout, self.depthwise, self.dtype, name=name
            )
        if kind == "T":
            return wrap(TimestepBlock, ())(self.dtype, name=name)
        if kind == "A":
            return wrap(AttentionBlock, (5,))(
                self.num_heads[level],
                self.self_attention,
                self.dropout,
                self.attention,
                self.dtype,
                name=name,
            )
        return wrap(FeedForwardBlock, (2,))(scale, self.dropout, self.dtype, name=name)

    @property
    def grid_divisor(self) -> int:
        """The latents' height and width must be multiples of this."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    def _check_fields(self) -> None:
        levels = {
            "widths": self.widths,
            "depths": self.depths,
            "num_heads": self.num_heads,
            "patterns": self.patterns,
            "inject": self.inject,
        }
        if len({len(value) for value in levels.values()}) != 1:
            raise ValueError(f"these need one entry per level: {levels}")
        unknown = set("".join(self.patterns)) - set("CTAF")
        if unknown:
            raise ValueError(f"unknown block types {sorted(unknown)} in patterns {self.patterns}")
        for pattern, width, heads in zip(self.patterns, self.widths, self.num_heads, strict=True):
            if "A" in pattern and (heads < 1 or width % heads):
                raise ValueError(f"{heads} heads do not divide the level width {width}")
        if self.time_width < 4:
            raise ValueError(f"time_width must be at least 4, got {self.time_width}")

    def _check_inputs(self, x: Array, cond: Conditioning) -> None:
        if cond.text is None:
            raise ValueError("Stage B needs a text; for no text give the embedding of an empty one")
        if x.ndim != 4 or x.shape[-1] != self.latent_channels:
            raise ValueError(
                f"latents have shape {x.shape}, need [batch, h, w, {self.latent_channels}]"
            )
        divisor = self.grid_divisor
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise ValueError(
                f"latents {x.shape[1]}x{x.shape[2]} must be divisible by {divisor} (patch size "
                "times 2 per further level); choose an image size in multiples of 128"
            )
        guide = cond.guide
        if guide is not None and (
            guide.ndim != 4 or (guide.shape[0], guide.shape[3]) != (x.shape[0], self.guide_channels)
        ):
            raise ValueError(
                f"the guide has shape {guide.shape}, need "
                f"[{x.shape[0]}, h, w, {self.guide_channels}]"
            )
