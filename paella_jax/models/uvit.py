"""aMUSEd's masked transformer over the token grid, a U-ViT (docs/models/muse.md 2)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from paella_jax.models.context import Context, both, mapped
from paella_jax.models.layers import Dense, Dtype, Initializer, scaled_xavier
from paella_jax.models.positions import with_positions
from paella_jax.models.prepared import prepared
from paella_jax.models.transformer_layers import RootMeanSquareNorm, linear_init, zeros
from paella_jax.models.uvit_blocks import (
    ConvStageBlock,
    Resample,
    TextAttentionBlock,
    TransformerLayer,
)
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.ops.linear import dense
from paella_jax.typing import Array

RELEASED_MICRO_CONDS = 5  # a sixth is the noise level, which the released models do not read


def micro_condition_embedding(micro_conds: Array, width: int) -> Array:
    """Sinusoids of numbers such as the image size: all cosines, then all sines.

    Source: docs/models/muse.md 2.2.

    Args:
      micro_conds: float [batch, numbers]. Stays float32: bfloat16 would round 513 to 512.
      width: one number's embedding width; an odd one ends in a zero column.

    Returns:
      float32 [batch, numbers * width].
    """
    half = width // 2
    exponents = (
        np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    )
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = micro_conds.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    embedding = jnp.pad(embedding, ((0, 0), (0, 0), (0, width - 2 * half)))
    return embedding.reshape(micro_conds.shape[0], -1)


class UViT(nn.Module):
    """Predicts the masked tokens of a token map. Defaults are aMUSEd-256.

    aMUSEd-512 also has `downsample` and `upsample`: its transformer runs at half the grid's side.
    """

    vocabulary_size: int = 8256  # rows of the input table; the last is the mask
    codebook_size: int = 8192  # classes of the output
    token_width: int = 768  # token embedding width, also the width before the classifier
    conv_width: int = 768  # channels of the convolutional stages
    conv_blocks: int = 3  # convolution and attention pairs of each stage
    conv_heads: int = 12
    width: int = 1024  # of the transformer
    depth: int = 22
    num_heads: int = 16
    feed_forward_width: int = 2816
    text_width: int = 768  # of the text encoder's states
    pooled_width: int = 768  # of the pooled text
    micro_width: int = 256  # of one micro-condition's sinusoids
    micro_conds: int = 5  # width, height, crop top, crop left, aesthetic score
    downsample: bool = False
    upsample: bool = False
    positions: bool = False  # position vectors beside the tokens'; not in the released models
    use_bias: bool = False
    learned_norms: bool = True
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0  # of the convolutional stages' attention
    remat: bool = False  # recompute block activations in the backward pass
    depthwise: str = "auto"  # implementation of ops/depthwise.py
    attention: str | None = "auto"  # kernel of ops/attention.py
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        encoder_hidden_states: Context,
        pooled_text: Array,
        micro_conds: Array,
        *,
        text_mask: Array | None = None,
        deterministic: bool = True,
        return_features: bool = False,
    ) -> Array:
        """Logits of the clean tokens.

        Args:
          tokens: int [batch, h, w] below `vocabulary_size`, `mask_token` where unknown; h and w
            divisible by `grid_divisor`.
          encoder_hidden_states: float [batch, L, text_width], the text encoder's states.
          pooled_text: float [batch, pooled_width].
          micro_conds: float32 [batch, micro_conds]: width, height, crop top, crop left of the
            training image in pixels and an aesthetic score.
          text_mask: bool [batch, L], False positions are invisible; None (all visible) is what
            the reference does. Each sample needs a visible position.
          deterministic: switches dropout off.
          return_features: stop before the classifier, for a chunked loss.

        Returns:
          float32 [batch, h, w, codebook_size], or the classifier's input [..., token_width].

        Raises:
          ValueError: an input's size does not fit the model.
        """
        self._check(tokens, encoder_hidden_states, pooled_text, micro_conds)
        table_init = nn.initializers.normal(math.sqrt(1.0 / self.vocabulary_size))
        table = self.param("token_table", table_init, (self.vocabulary_size, self.token_width))
        # Starts as a copy of the codes' embeddings, a separate parameter afterwards.
        classifier = self.param("classifier", lambda _: jnp.array(table[: self.codebook_size]).T)

        text = mapped(encoder_hidden_states, self._text, "text")
        make = lambda: self._condition(pooled_text, micro_conds)
        told_level = self.micro_conds > RELEASED_MICRO_CONDS
        condition = make() if told_level else prepared(self, "condition", make)

        x = self._norm("embedding_norm")(jnp.take(table, tokens, axis=0)).astype(self.dtype)
        if self.positions:
            x = with_positions(x)
        x = self._dense(self.conv_width, "embedding", scaled_xavier(0.02))(x)
        if self.downsample:
            x = self._resample("down")(x)
        x = self._stage(x, "down", text, text_mask, condition, deterministic)

        x = self._transformer(x, text, text_mask, condition, deterministic)
        x = self._stage(x, "up", text, text_mask, condition, deterministic)
        if self.upsample:
            x = self._resample("up")(x)
        features = self._norm("output_norm")(self._dense(self.token_width, "output", zeros)(x))
        bias = None
        if self.use_bias:
            bias = self.param("classifier_bias", zeros, (self.codebook_size,))
        if return_features:
            return features
        logits = dense(features, classifier, precision_dtype=jnp.float32)
        return logits if bias is None else logits + bias.reshape(1, 1, 1, -1)

    def _transformer(
        self,
        x: Array,
        text: Context,
        text_mask: Array | None,
        condition: Array,
        deterministic: bool,
    ) -> Array:
        """`depth` layers over the positions of a map [B, h, w, conv_width]."""
        height, width = x.shape[1:3]
        x = self._norm("hidden_in_norm")(rearrange(x, "b h w c -> b (h w) c"))
        x = self._dense(self.width, "hidden_in")(x)
        for index in range(self.depth):
            # `deterministic` is a Python bool and must stay one under remat (counted with self).
            x = self._wrap(TransformerLayer, 5)(
                self.num_heads,
                self.feed_forward_width,
                self.use_bias,
                self.learned_norms,
                self.norm_epsilon,
                self.dropout,
                self.attention,
                self.dtype,
                name=f"layer_{index}",
            )(constrain_batch(x), text, text_mask, condition, deterministic)
        x = self._dense(self.conv_width, "hidden_out")(self._norm("hidden_out_norm")(x))
        return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)

    @property
    def grid_divisor(self) -> int:
        """The token map's height and width must be multiples of this."""
        return 2 if self.downsample else 1

    @property
    def mask_token(self) -> int:
        """The id of an unknown token."""
        return self.vocabulary_size - 1

    def _dense(self, features: int, name: str, init: Initializer = linear_init) -> Dense:
        return Dense(features, self.use_bias, kernel_init=init, dtype=self.dtype, name=name)

    def _condition(self, pooled_text: Array, micro_conds: Array) -> Array:
        """What modulates every block: pooled text and micro-conditions, [batch, width]."""
        micro = micro_condition_embedding(micro_conds, self.micro_width)
        condition = jnp.concatenate([pooled_text.astype(jnp.float32), micro], axis=-1)
        condition = nn.silu(self._dense(self.width, "condition_in")(condition))
        return self._dense(self.width, "condition_out")(condition)

    def _text(self, name: str, states: Array) -> Array:
        return self._norm(f"{name}_norm")(self._dense(self.width, name)(states))

    def _norm(self, name: str) -> RootMeanSquareNorm:
        return RootMeanSquareNorm(self.learned_norms, self.norm_epsilon, name=name)

    def _resample(self, side: str) -> Resample:
        return Resample(
            side == "up",
            self.use_bias,
            self.learned_norms,
            self.norm_epsilon,
            self.dtype,
            name=f"{side}_resample",
        )

    def _wrap(self, block: type[nn.Module], deterministic: int) -> type[nn.Module]:
        return nn.remat(block, static_argnums=(deterministic,)) if self.remat else block

    def _stage(
        self,
        x: Array,
        side: str,
        text: Context,
        text_mask: Array | None,
        condition: Array,
        deterministic: bool,
    ) -> Array:
        """`conv_blocks` pairs of a convolutional and a text attention block."""
        for index in range(self.conv_blocks):
            x = self._wrap(ConvStageBlock, 3)(
                self.use_bias,
                self.learned_norms,
                self.norm_epsilon,
                self.dropout,
                self.depthwise,
                self.dtype,
                name=f"{side}_conv_{index}",
            )(x, condition, deterministic)
            x = self._wrap(TextAttentionBlock, 4)(
                self.conv_heads,
                self.use_bias,
                self.attention_dropout,
                self.attention,
                self.dtype,
                name=f"{side}_attention_{index}",
            )(x, text, text_mask, deterministic)
        return x

    def _check(
        self, tokens: Array, states: Context, pooled_text: Array, micro_conds: Array
    ) -> None:
        for name, width, heads in (
            ("width", self.width, self.num_heads),
            ("conv_width", self.conv_width, self.conv_heads),
        ):
            if heads < 1 or width % heads:
                raise ValueError(f"{heads} heads do not divide {name} {width}")
        if self.codebook_size >= self.vocabulary_size:
            raise ValueError(
                f"vocabulary_size {self.vocabulary_size} must be above codebook_size "
                f"{self.codebook_size}: its last row is the mask"
            )
        for name, array, size in (
            ("encoder_hidden_states", both(states).keys, self.text_width),
            ("pooled_text", pooled_text, self.pooled_width),
            ("micro_conds", micro_conds, self.micro_conds),
        ):
            if array.shape[-1] != size:
                raise ValueError(
                    f"{name} has {array.shape[-1]} channels, this model takes {size}; use the text "
                    "encoder and micro-conditions it was made for"
                )
        height, width = tokens.shape[1:]
        if height % self.grid_divisor or width % self.grid_divisor:
            raise ValueError(
                f"token map {height}x{width} must be divisible by {self.grid_divisor} on both "
                "sides (the model halves it); choose another image size"
            )
