"""The levels of Paella and of Würstchen's Stage B: a U-Net of C, T, A and F blocks.

What comes before and after the levels is each network's own (docs/models/paella.md 2.2,
docs/models/wuerstchen.md 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.blocks import BlockInputs, BlockOptions, ConvBlock, run_blocks
from paella_jax.models.layers import (
    Dense,
    Downsample,
    Dtype,
    Upsample,
    layer_norm,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_xavier,
)
from paella_jax.typing import Array

# (map at a level, "down" or "up", level) -> further maps of its size for the level's C blocks
LevelMaps = Callable[[Array, str, int], tuple[Array, ...]]


class UNet(nn.Module):
    """Base of a network with levels. A subclass brings their sizes and its own `__call__`."""

    widths: tuple[int, ...]  # channels per level, finest first
    depths: tuple[int, ...]  # repetitions of the level's pattern
    num_heads: tuple[int, ...]  # per level; ignored without A
    patterns: tuple[str, ...]  # blocks of one repetition: C, T, A, F
    patch_size: int = 2
    time_width: int = 64  # timestep embedding width
    cond_width: int = 1024  # width of the conditioning sequence
    kernel_size: int = 3  # depthwise convolution
    dropout: tuple[float, ...] | float = 0.1  # of all levels, or one per level
    self_attention: bool = True
    remat: bool = False  # recompute block activations in the backward pass
    remat_keeps: str = "nothing"  # of a recomputed block: nothing, or products
    loop: bool = False  # repeated blocks as one loop: compiles in a fraction of the time
    depthwise: str = "auto"  # implementation of ops/depthwise.py
    attention: str | None = "auto"  # kernel of ops/attention.py
    attention_dropout: str = "probabilities"  # what it sets to zero: probabilities or output
    dtype: Dtype = jnp.float32

    conv_block: ClassVar[type[nn.Module]] = ConvBlock
    per_level: ClassVar[tuple[str, ...]] = ("widths", "depths", "num_heads", "patterns")

    def levels(self, x: Array, inputs: BlockInputs, maps: LevelMaps | None = None) -> Array:
        """Runs every level's blocks on the way down, and again on the way up.

        Args:
          x: [batch, h, w, widths[0]].
          inputs: what T and A blocks read.
          maps: what C blocks read besides the skip; None is nothing.

        Returns:
          [batch, h, w, widths[0]].
        """
        skips: list[tuple[Array, ...]] = []
        for level, width in enumerate(self.widths):
            if level > 0:
                down = Downsample(width, dtype=self.dtype, name=f"down_{level}_downsample")
                x = down(layer_norm(x))
            x = self._level(x, "down", level, inputs, (), maps)
            skips.append((x,))
        skips[-1] = ()  # the deepest level goes on with its own output
        for level in reversed(range(len(self.widths))):
            x = self._level(x, "up", level, inputs, skips[level], maps)
            if level > 0:
                up = Upsample(self.widths[level - 1], dtype=self.dtype, name=f"up_{level}_upsample")
                x = up(layer_norm(x))
        return x

    def _level(
        self,
        x: Array,
        side: str,
        level: int,
        inputs: BlockInputs,
        skip: tuple[Array, ...],
        maps: LevelMaps | None,
    ) -> Array:
        """`depths[level]` repetitions of the level's pattern; only the first block takes a skip."""
        options = BlockOptions(
            self.num_heads[level],
            math.sqrt(1.0 / sum(self.depths)),
            self.dropout if isinstance(self.dropout, int | float) else self.dropout[level],
            self.kernel_size,
            self.self_attention,
            self.remat,
            self.remat_keeps,
            self.depthwise,
            self.attention_dropout,
            self.attention,
            self.dtype,
            self.conv_block,
        )
        pattern = self.patterns[level] * self.depths[level]
        more = () if maps is None else maps(x, side, level)
        looped = self if self.loop else None
        return run_blocks(x, pattern, f"{side}_{level}_block", options, inputs, skip, more, looped)

    @property
    def grid_divisor(self) -> int:
        """The input's height and width must be multiples of this."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    def check_fields(self) -> None:
        """Raises ValueError where fields do not fit together."""
        levels = {name: getattr(self, name) for name in self.per_level}
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


class PatchEmbedding(nn.Module):
    """Pixel-unshuffle, 1x1 convolution and norm: [B, h, w, C] -> [B, h/p, w/p, features]."""

    features: int
    patch_size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = pixel_unshuffle(x, self.patch_size)
        init = scaled_xavier(0.02)
        return layer_norm(Dense(self.features, kernel_init=init, dtype=self.dtype, name="proj")(x))


class PatchOutput(nn.Module):
    """Norm, 1x1 convolution and pixel-shuffle: [B, h/p, w/p, C] -> [B, h, w, features]."""

    features: int
    patch_size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.features * self.patch_size**2
        zeros = nn.initializers.zeros
        x = Dense(width, kernel_init=zeros, dtype=self.dtype, name="proj")(layer_norm(x))
        return pixel_shuffle(x, self.patch_size)
