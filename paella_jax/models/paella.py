"""Paella's token predictor: a ConvNeXt U-Net over the token grid (docs/models/paella.md 2)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat

from paella_jax.models.blocks import AttentionBlock, ConvBlock, FeedForwardBlock, TimestepBlock
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.layers import (
    Dense,
    Downsample,
    Dtype,
    Upsample,
    layer_norm,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_xavier,
    timestep_embedding,
)
from paella_jax.ops.linear import dense
from paella_jax.typing import Array


class ConditioningSequence(nn.Module):
    """Text, pooled text and pooled images -> one normalised sequence of `width`-wide vectors."""

    width: int
    clip_tokens: int
    num_classes: int = 0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, cond: Conditioning) -> tuple[Array, Array | None]:
        """Returns the sequence [B, L, width] and its mask bool [B, L] (None: all real).

        The order is text, pooled text, pooled images, label; an absent input shortens the sequence.
        """
        init = nn.initializers.normal(0.02)
        project = lambda name, tokens: Dense(
            tokens * self.width, kernel_init=init, dtype=self.dtype, name=name
        )
        parts, masks = [], []
        if cond.text is not None:
            parts.append(project("text", 1)(cond.text))
            masks.append((cond.text_mask, cond.text.shape[:2]))
        if cond.text_pooled is not None:
            pooled = project("clip_text", self.clip_tokens)(cond.text_pooled)
            parts.append(rearrange(pooled, "b (n c) -> b n c", c=self.width))
            masks.append((None, parts[-1].shape[:2]))
        if cond.image_pooled is not None:
            images = project("clip_image", self.clip_tokens)(cond.image_pooled)
            parts.append(rearrange(images, "b i (n c) -> b (i n) c", c=self.width))
            mask = cond.image_mask
            mask = None if mask is None else repeat(mask, "b i -> b (i n)", n=self.clip_tokens)
            masks.append((mask, parts[-1].shape[:2]))
        if cond.labels is not None:
            shape = (self.num_classes, self.width)
            table = self.param("label_table", nn.initializers.normal(1.0), shape)
            parts.append(jnp.take(table, jnp.maximum(cond.labels, 0), axis=0)[:, None])
            masks.append((cond.labels[:, None] >= 0, parts[-1].shape[:2]))
        if not parts:
            raise ValueError("Paella needs at least one of text, pooled text, images and labels")
        sequence = layer_norm(jnp.concatenate(parts, axis=1))
        if all(mask is None for mask, _ in masks):
            return sequence, None
        return sequence, jnp.concatenate(
            [jnp.ones(shape, bool) if mask is None else mask for mask, shape in masks], axis=1
        )


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


class Paella(nn.Module):
    """Predicts the clean tokens of a noised token map. Defaults are the released 1B model."""

    codebook_size: int = 8192
    mask_row: bool = False  # the input table has one row more, the mask; not in the released model
    token_width: int = 256  # token embedding width, also the width before the classifier
    patch_size: int = 2
    time_width: int = 64  # timestep embedding width
    cond_width: int = 1024  # width of the conditioning sequence
    widths: tuple[int, ...] = (640, 1280, 1280)  # channels per level, finest first
    depths: tuple[int, ...] = (6, 16, 6)  # repetitions of the level's pattern
    num_heads: tuple[int, ...] = (0, 16, 16)  # per level; ignored without A
    patterns: tuple[str, ...] = ("CT", "CTA", "CTA")  # blocks of one repetition: C, T, A, F
    clip_tokens: int = 4  # sequence positions made from one pooled vector
    num_classes: int = 0  # class labels; not in the released model
    num_segments: int = 0  # classes of a segmentation map; not in the released model
    kernel_size: int = 3  # depthwise convolution
    dropout: tuple[float, ...] | float = 0.1
    self_attention: bool = True
    remat: bool = False  # recompute block activations in the backward pass
    depthwise: str = "auto"  # see ops/depthwise.py
    attention: str | None = None  # jax.nn.dot_product_attention implementation
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        attention_weights: Array | None = None,
        return_features: bool = False,
    ) -> Array:
        """Logits of the clean tokens.

        Args:
          tokens: int32 [batch, h, w]; h and w divisible by `grid_divisor`; with a `mask_row`
            `mask_token` where unknown.
          t: float32 [batch], share of replaced tokens in [0, 1].
          cond: conditioning; at least one input must be present.
          deterministic: switches dropout off.
          attention_weights: [L] or [batch, L], multiplies the attention of the last L conditioning
            positions; `cond.text_weights` does the same by text position.
          return_features: stop before the classifier, for a chunked loss.

        Returns:
          float32 [batch, h, w, codebook_size], or the classifier's input [..., token_width].
        """
        self._check(tokens.shape)
        table_init = nn.initializers.normal(math.sqrt(1.0 / self.codebook_size))
        rows = self.codebook_size + self.mask_row
        table = self.param("token_table", table_init, (rows, self.token_width))
        # Starts as a copy of the codes' embeddings, a separate parameter afterwards.
        classifier = self.param("classifier", lambda _: jnp.array(table[: self.codebook_size]).T)

        time = timestep_embedding(t, self.time_width)
        sequence = ConditioningSequence(
            self.cond_width, self.clip_tokens, self.num_classes, self.dtype, name="conditioning"
        )(cond)
        if cond.text_weights is not None:
            rest = sequence[0].shape[1] - cond.text_weights.shape[1]  # what follows the text
            attention_weights = jnp.pad(cond.text_weights, ((0, 0), (0, rest)), constant_values=1.0)
        run = lambda x, skip, side, level: self._level(
            x, skip, side, level, time, sequence, attention_weights, deterministic
        )
        x = layer_norm(jnp.take(table, tokens, axis=0)).astype(self.dtype)
        if cond.segmentation is not None:
            x = x + self._segments(cond.segmentation).astype(self.dtype)
        x = PatchEmbedding(self.widths[0], self.patch_size, self.dtype, name="embedding")(x)

        skips = []
        for level, width in enumerate(self.widths):
            if level > 0:
                down = Downsample(width, dtype=self.dtype, name=f"down_{level}_downsample")
                x = down(layer_norm(x))
            x = run(x, None, "down", level)
            skips.append(x)
        deepest = len(self.widths) - 1
        for level in reversed(range(len(self.widths))):
            x = run(x, skips[level] if level < deepest else None, "up", level)
            if level > 0:
                up = Upsample(self.widths[level - 1], dtype=self.dtype, name=f"up_{level}_upsample")
                x = up(layer_norm(x))
        features = layer_norm(
            PatchOutput(self.token_width, self.patch_size, self.dtype, name="output")(x)
        )
        if return_features:
            return features
        return dense(features, classifier.astype(self.dtype), precision_dtype=jnp.float32)

    def _segments(self, segmentation: Array) -> Array:
        """What a segmentation map adds to the token embeddings: zero at first and where it is -1.

        The first generation took a condition per position; this brings that back for maps.
        """
        shape = (self.num_segments, self.token_width)
        table = self.param("segment_table", nn.initializers.zeros, shape)
        added = jnp.take(table, jnp.maximum(segmentation, 0), axis=0)
        return jnp.where((segmentation >= 0)[..., None], added, 0.0)

    def _level(
        self,
        x: Array,
        skip: Array | None,
        side: str,
        level: int,
        time: Array,
        sequence: tuple[Array, Array | None],
        attention_weights: Array | None,
        deterministic: bool,
    ) -> Array:
        """`depths[level]` repetitions of the level's block pattern; only the first takes a skip."""
        for index, kind in enumerate(self.patterns[level] * self.depths[level]):
            block = self._block(kind, level, f"{side}_{level}_block_{index}")
            if kind == "C":
                x = block(x, skip if index == 0 else None, deterministic)
            elif kind == "T":
                x = block(x, time)
            elif kind == "A":
                x = block(x, *sequence, attention_weights, deterministic)
            else:
                x = block(x, deterministic)
        return x

    def _block(self, kind: str, level: int, name: str) -> nn.Module:
        dropout = self.dropout if isinstance(self.dropout, int | float) else self.dropout[level]
        scale = math.sqrt(1.0 / sum(self.depths))
        # `deterministic` is a Python bool and must stay one under remat (counted with self).
        wrap = lambda cls, static: nn.remat(cls, static_argnums=static) if self.remat else cls
        if kind == "C":
            return wrap(ConvBlock, (3,))(
                self.kernel_size, scale, dropout, self.depthwise, self.dtype, name=name
            )
        if kind == "T":
            return wrap(TimestepBlock, ())(self.dtype, name=name)
        if kind == "A":
            return wrap(AttentionBlock, (5,))(
                self.num_heads[level],
                self.self_attention,
                dropout,
                self.attention,
                self.dtype,
                name=name,
            )
        return wrap(FeedForwardBlock, (2,))(scale, dropout, self.dtype, name=name)

    @property
    def mask_token(self) -> int | None:
        """The id of an unknown token; None where tokens are replaced by random ones."""
        return self.codebook_size if self.mask_row else None

    @property
    def knows_noise_level(self) -> bool:
        """Whether `t` is read."""
        return any("T" in pattern for pattern in self.patterns)

    @property
    def grid_divisor(self) -> int:
        """The token map's height and width must be multiples of this."""
        return self.patch_size * 2 ** (len(self.widths) - 1)

    def _check(self, shape: tuple[int, ...]) -> None:
        levels = {
            "widths": self.widths,
            "depths": self.depths,
            "num_heads": self.num_heads,
            "patterns": self.patterns,
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
        divisor = self.grid_divisor
        if shape[1] % divisor or shape[2] % divisor:
            raise ValueError(
                f"token map {shape[1]}x{shape[2]} must be divisible by {divisor} "
                "(patch size times 2 per further level); choose another image size"
            )
