"""MUSE's base transformer over the token grid (docs/models/muse.md 1.2), and its parts.

The paper leaves open the heads, norms, activation, position form and what an absent text is. Here:
layer norms before each part and behind the embedding, exact GELU, no biases, one learned vector per
position, and a learned null position beside the text, so that attention is defined where there is
no text at all.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.conditioning import Conditioning, text_alone
from paella_jax.models.context import Context, both, joined, mapped
from paella_jax.models.layers import Dense, Dtype, gelu, timestep_embedding
from paella_jax.models.multi_axis_attention import MultiAxisAttention
from paella_jax.models.repeated import loop_over_layers
from paella_jax.models.transformer_layers import (
    LearnedLayerNorm,
    SeparateAttention,
    linear_init,
    normal,
)
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.ops.linear import dense
from paella_jax.typing import Array


class MuseLayer(nn.Module):
    """Self-attention, attention to the context and an MLP, each behind a layer norm."""

    num_heads: int
    feed_forward_width: int
    dropout: float = 0.0
    attention: str | None = None
    cross_attention: bool = True
    dtype: Dtype = jnp.float32
    block_size: int = 0  # tokens per side of multi-axis self-attention's blocks; 0: full attention

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Context | None = None,
        context_mask: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """x [B, N, C], context [B, L, C], context_mask bool [B, L] -> [B, N, C]."""
        norm = lambda name: LearnedLayerNorm(name=name)
        options = (self.num_heads, False, self.dropout, self.attention, self.dtype)
        y = norm("self_norm")(x)
        if self.block_size:
            attend = MultiAxisAttention(*options, self.block_size, name="self_attention")
        else:
            attend = SeparateAttention(*options, name="self_attention")
        x = x + attend(y, y, None, deterministic)
        if self.cross_attention:
            y = norm("cross_norm")(x)
            attend = SeparateAttention(*options, name="cross_attention")
            x = x + attend(y, context, context_mask, deterministic)
        mlp = MuseMLP(self.feed_forward_width, self.dropout, self.dtype, name="mlp")
        return x + mlp(norm("mlp_norm")(x), deterministic)


class MuseMLP(nn.Module):
    """Two bias-free linear layers with GELU between them."""

    hidden_width: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        project = partial(Dense, use_bias=False, kernel_init=linear_init, dtype=self.dtype)
        hidden = gelu(project(self.hidden_width, name="expand")(x))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        return project(x.shape[-1], name="contract")(hidden)


class TextContext(nn.Module):
    """Text states projected to the transformer's width, behind a null position."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, cond: Conditioning) -> tuple[Context, Array | None]:
        """Returns the context [B, 1 + L, width] and its mask bool (None: all visible).

        Raises:
          ValueError: the condition is not text alone.
        """
        text = text_alone(cond, "transformer")
        project = partial(Dense, self.width, False, kernel_init=linear_init, dtype=self.dtype)
        null = self.param("null_text", normal, (1, 1, self.width)).astype(self.dtype)
        batch = both(text).keys.shape[0]
        null = jnp.broadcast_to(null, (batch, 1, self.width))
        context = joined([null, mapped(text, lambda name, x: project(name=name)(x), "text")])
        if cond.text_mask is None:
            return context, None
        return context, jnp.concatenate([jnp.ones((batch, 1), bool), cond.text_mask], axis=1)


class TokenEmbedding(nn.Module):
    """Tokens [B, grid, grid] -> float32 [B, grid * grid, width] with learned positions.

    The norm lifts both to the size of what the layers add. Without it an all-masked map, whose
    positions differ in 0.02 alone, stays the same everywhere (docs/models/muse.md 1.2).
    """

    vocabulary_size: int
    grid: int
    width: int

    def setup(self) -> None:
        """Makes the parameters."""
        self.token_table = self.param("token_table", normal, (self.vocabulary_size, self.width))
        self.positions = self.param("positions", normal, (self.grid, self.grid, self.width))
        self.norm = LearnedLayerNorm()

    def __call__(self, tokens: Array) -> Array:
        x = jnp.take(self.token_table, tokens, axis=0) + self.positions[None]
        return self.norm(rearrange(x, "b h w c -> b (h w) c"))


class MusePredictor(nn.Module):
    """Base of MUSE's two transformers, which differ in their sizes and in their context.

    The defaults are the 3B base model's.
    """

    codebook_size: int = 8192
    mask_row: bool = True  # the input table has one row more, the mask
    grid: int = 16  # side of the token map
    width: int = 2048
    depth: int = 48
    num_heads: int = 16  # a guess: 128 channels each
    feed_forward_width: int = 8192
    block_size: int = 0  # tokens per side of multi-axis self-attention's blocks; 0: full attention
    # MaskGIT's head: a norm, then the input's table and a bias; False: a matrix of its own.
    tied_head: bool = False
    time_width: int = 0  # of the noise level's embedding; 0: the network does not read it, as MUSE
    dropout: float = 0.0
    remat: bool = False  # recompute layer activations in the backward pass
    loop: bool = False  # the layers as one loop: compiles in a fraction of the time
    attention: str | None = "auto"  # kernel of ops/attention.py
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        return_features: bool = False,
    ) -> Array:
        """Logits of the clean tokens.

        Args:
          tokens: int32 [batch, grid, grid], `mask_token` where unknown.
          t: float32 [batch], fraction of corrupted tokens in [0, 1]; read with a `time_width` only.
          cond: text states; where `text_mask` is all False the text is absent. Super-resolution
            also needs `low_tokens` int32 [batch, low_grid, low_grid] in [0, low_codebook_size).
          deterministic: switches dropout off.
          return_features: stop before the classifier, for a chunked loss.

        Returns:
          float32 [batch, grid, grid, codebook_size], or the classifier's input [..., width].

        Raises:
          ValueError: sizes that do not fit each other, token maps of another size, or another
            condition than the network's.
        """
        self.check(tokens.shape)
        context, mask = self.context(cond, deterministic)
        embedding = TokenEmbedding(self.vocabulary_size, self.grid, self.width, name="embedding")
        x = embedding(tokens).astype(self.dtype)
        project = partial(Dense, self.width, False, dtype=self.dtype)
        if self.time_width:
            # From zero, as the timestep blocks of Paella: it is the same at all positions.
            level = project(kernel_init=nn.initializers.zeros, name="noise_level")
            x = x + level(timestep_embedding(t, self.time_width))[:, None, :]
        x = self.layers("layer", self.depth, x, context, mask, deterministic)
        x = LearnedLayerNorm(name="output_norm")(x)
        x = gelu(project(kernel_init=linear_init, name="output")(x))
        if self.tied_head:
            x = LearnedLayerNorm(use_bias=True, name="head_norm")(x)
            classifier = embedding.token_table[: self.codebook_size].T
            bias = self.param("classifier_bias", nn.initializers.zeros, (self.codebook_size,))
        else:
            classifier = self.param("classifier", linear_init, (self.width, self.codebook_size))
        features = rearrange(x, "b (h w) c -> b h w c", h=self.grid)
        if return_features:
            return features
        logits = dense(features, classifier, precision_dtype=jnp.float32)
        return logits + bias[None, None, None] if self.tied_head else logits

    def context(self, cond: Conditioning, deterministic: bool) -> tuple[Context, Array | None]:
        """What cross-attention reads, [B, L, width], and its mask bool [B, L] (None: all)."""
        raise NotImplementedError

    def layers(
        self,
        name: str,
        depth: int,
        x: Array,
        context: Context | None,
        context_mask: Array | None,
        deterministic: bool,
    ) -> Array:
        """`depth` layers named NAME_0, NAME_1, ...: x [B, N, width] -> [B, N, width].

        Without a context they have full self-attention alone.
        """
        settings = (
            self.num_heads,
            self.feed_forward_width,
            self.dropout,
            self.attention,
            context is not None,
            self.dtype,
            0 if context is None else self.block_size,
        )
        names = [f"{name}_{index}" for index in range(depth)]
        if self.loop and depth > 1 and not self.is_initializing():
            params = [self.variables["params"][own] for own in names]
            key = None if deterministic or self.dropout == 0 else self.make_rng("dropout")
            given = (context, context_mask, deterministic)
            layer = MuseLayer(*settings, parent=None)
            keep = (self, name)
            return loop_over_layers(layer, params, x, *given, key=key, remat=self.remat, keep=keep)
        make = nn.remat(MuseLayer, static_argnums=(4,)) if self.remat else MuseLayer
        for own in names:
            given = (context, context_mask, deterministic)
            x = make(*settings, name=own)(constrain_batch(x), *given)
        return x

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input table."""
        return self.codebook_size + self.mask_row

    @property
    def mask_token(self) -> int | None:
        """The id of an unknown token; None where tokens are replaced by random ones."""
        return self.codebook_size if self.mask_row else None

    @property
    def grid_divisor(self) -> int:
        """The token map's height and width must be multiples of this."""
        return self.grid

    @property
    def knows_noise_level(self) -> bool:
        """Whether the network reads `t`."""
        return self.time_width > 0

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for heads or a token map [batch, h, w] that do not fit."""
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the width {self.width}")
        if tuple(shape[1:]) != (self.grid, self.grid):
            raise ValueError(
                f"token map {shape[1]}x{shape[2]}: this transformer has learned positions for "
                f"{self.grid}x{self.grid} tokens only; give images of that size, or train at the "
                "size wanted (data.image_size, square)"
            )


class MuseTransformer(MusePredictor):
    """Predicts the clean tokens of a masked (or randomly replaced) token map, given a text."""

    def context(self, cond: Conditioning, deterministic: bool) -> tuple[Context, Array | None]:
        """The text behind a null position, [B, 1 + L, width], and its mask."""
        return TextContext(self.width, self.dtype, name="context")(cond)
