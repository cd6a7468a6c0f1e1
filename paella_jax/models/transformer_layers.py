"""What MUSE's transformers, aMUSEd's U-ViT and its tokenizer share: inits, norms and attention."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.context import Context, both
from paella_jax.models.layers import Dense, Dtype, layer_norm
from paella_jax.models.prepared import prepared
from paella_jax.ops.attention import dot_product_attention
from paella_jax.typing import Array

# open-muse truncates at absolute +-2, a hundred deviations away: plain normals.
normal = nn.initializers.normal(0.02)
NARROW = 512  # inputs; the released models' layers have more


def linear_init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """open-muse's deviation of 0.02, and 1 / sqrt(inputs) where a layer is narrow.

    With 0.02 a transformer 96 channels wide never learns more than the tokens' frequencies: its
    attention starts too flat. At the released widths the two are about the same.
    """
    inputs = math.prod(shape[:-1])
    deviation = 0.02 if inputs >= NARROW else 1.0 / math.sqrt(inputs)
    return deviation * jax.random.normal(key, shape, dtype)


zeros = nn.initializers.zeros


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) times a learned scale, in float32; nothing is subtracted."""

    learned: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return _scaled(self, wide, self.learned).astype(x.dtype)


class LearnedLayerNorm(nn.Module):
    """Layer norm times a learned scale, plus a bias where asked for; in float32."""

    learned: bool = True
    use_bias: bool = False
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = _scaled(self, layer_norm(x.astype(jnp.float32), self.epsilon), self.learned)
        if self.learned and self.use_bias:
            bias = self.param("bias", zeros, (x.shape[-1],))
            wide = wide + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return wide.astype(x.dtype)


def _scaled(module: nn.Module, x: Array, learned: bool) -> Array:
    if not learned:
        return x
    scale = module.param("scale", nn.initializers.ones, (x.shape[-1],))
    return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


class SeparateAttention(nn.Module):
    """Attention with one matrix each for queries, keys and values; the width is that of x."""

    num_heads: int
    use_bias: bool = False
    dropout: float = 0.0  # of the output
    implementation: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Context,
        context_mask: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """x [B, N, C], context [B, L, D], context_mask bool [B, L] or None -> [B, N, C].

        A context that is x itself is self-attention.
        """
        channels = x.shape[-1]
        project = lambda name: Dense(
            channels, self.use_bias, kernel_init=linear_init, dtype=self.dtype, name=name
        )
        split = lambda y: rearrange(y, "b n (h d) -> b n h d", h=self.num_heads)
        read = lambda: tuple(
            split(project(name)(y)) for name, y in zip(("key", "value"), both(context), strict=True)
        )
        query = split(project("query")(x))
        key, value = read() if context is x else prepared(self, "context", read)
        y = self.attend(query, key, value, context_mask)
        y = project("out")(rearrange(y, "b n h d -> b n (h d)"))
        return nn.Dropout(self.dropout)(y, deterministic=deterministic)

    def attend(self, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        """Who sees whom: here every key that the mask shows. [B, N, heads, head_dim]."""
        return dot_product_attention(
            query, key, value, key_mask=mask, implementation=self.implementation
        )
