"""The four residual blocks of Paella's U-Net: C (conv), T (timestep), A (attention), F (MLP).

Formulas: docs/models/paella.md 2.3. Würstchen's stages use the same blocks.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.layers import (
    Dense,
    DepthwiseConv,
    Dtype,
    GlobalResponseNorm,
    MultiHeadAttention,
    gelu,
    layer_norm,
    scaled_xavier,
)
from paella_jax.typing import Array


class ResponseMlp(nn.Module):
    """Linear to 4C, GELU, GRN, dropout, linear 4C -> C (its init scaled by `residual_scale`).

    C is `features`, by default the input's channels.
    """

    residual_scale: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    features: int | None = None

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        channels = x.shape[-1] if self.features is None else self.features
        hidden = gelu(Dense(4 * channels, dtype=self.dtype, name="expand")(x))
        hidden = GlobalResponseNorm(dtype=self.dtype, name="response_norm")(hidden)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        init = scaled_xavier(self.residual_scale)
        return Dense(channels, kernel_init=init, dtype=self.dtype, name="contract")(hidden)


class ConvBlock(nn.Module):
    """C: depthwise conv, norm, MLP. A skip map is concatenated before the convolution."""

    kernel_size: int = 3
    residual_scale: float = 1.0
    dropout: float = 0.0
    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None, deterministic: bool = True) -> Array:
        hidden = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        # With a skip there are two inputs per group, contiguous: the lower half of the output
        # channels sees only x, the upper half only the skip. That is the reference's behaviour.
        hidden = DepthwiseConv(
            self.kernel_size,
            inputs_per_group=1 if skip is None else 2,
            implementation=self.depthwise,
            dtype=self.dtype,
            name="depthwise",
        )(hidden)
        mlp = ResponseMlp(self.residual_scale, self.dropout, self.dtype, name="mlp")
        return x + mlp(layer_norm(hidden), deterministic)


class LateSkipConvBlock(nn.Module):
    """C of Würstchen's Stage B: maps of the same size join after the convolution and the norm.

    They are neither convolved nor normalised (docs/models/wuerstchen.md 4.2).
    """

    kernel_size: int = 3
    residual_scale: float = 1.0
    dropout: float = 0.0
    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, maps: tuple[Array, ...] = (), deterministic: bool = True) -> Array:
        depthwise = DepthwiseConv(
            self.kernel_size, implementation=self.depthwise, dtype=self.dtype, name="depthwise"
        )
        hidden = jnp.concatenate([layer_norm(depthwise(x)), *maps], axis=-1)
        features = x.shape[-1]
        mlp = ResponseMlp(self.residual_scale, self.dropout, self.dtype, features, name="mlp")
        return x + mlp(hidden, deterministic)


class TimestepBlock(nn.Module):
    """T: scale and shift from the timestep embedding; zero-initialised, it starts as identity."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        mapper = Dense(2 * channels, kernel_init=zeros, dtype=self.dtype, name="mapper")
        scale, shift = jnp.split(mapper(time)[:, None, None, :], 2, axis=-1)
        return x * (1.0 + scale) + shift


class AttentionBlock(nn.Module):
    """A: the image attends to itself (optional) and to the conditioning sequence."""

    num_heads: int
    self_attention: bool = True
    dropout: float = 0.0
    attention: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        sequence: Array,
        sequence_mask: Array | None = None,
        value_weights: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        height, width = x.shape[1:3]
        context = Dense(x.shape[-1], dtype=self.dtype, name="kv_mapper")(nn.silu(sequence))
        queries = rearrange(layer_norm(x), "b h w c -> b (h w) c")
        y = MultiHeadAttention(
            self.num_heads,
            self.self_attention,
            self.dropout,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )(queries, context, sequence_mask, value_weights, deterministic)
        return x + rearrange(y, "b (h w) c -> b h w c", h=height, w=width)


class FeedForwardBlock(nn.Module):
    """F: norm and MLP, no convolution."""

    residual_scale: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        mlp = ResponseMlp(self.residual_scale, self.dropout, self.dtype, name="mlp")
        return x + mlp(layer_norm(x), deterministic)
