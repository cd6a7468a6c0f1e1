"""Layers shared by every network: norms, projections, convolutions, attention, pixel shuffles.

Channels are last everywhere ([batch, height, width, channels]). Parameters are float32 and used in
`dtype`; norms and the softmax are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from paella_jax.models.context import Context, KeysAndValues
from paella_jax.models.prepared import prepared
from paella_jax.ops.attention import dot_product_attention
from paella_jax.ops.depthwise import depthwise_conv
from paella_jax.ops.gelu import gelu as gelu
from paella_jax.ops.linear import add_bias, dense, strided_conv, transposed_conv
from paella_jax.ops.norm import layer_norm as layer_norm
from paella_jax.typing import Array

Dtype = jnp.dtype
Initializer = Callable[..., Array]

xavier = nn.initializers.xavier_uniform()
DROPPED = ("probabilities", "output")  # of attention: what dropout sets to zero


def scaled_xavier(scale: float) -> Initializer:
    """Xavier uniform times a constant factor (torch's `gain`)."""
    return nn.initializers.variance_scaling(scale**2, "fan_avg", "uniform")


def pixel_unshuffle(x: Array, factor: int) -> Array:
    """[B, H, W, C] -> [B, H/f, W/f, C*f*f], channel order (channel, dy, dx) as in PyTorch."""
    return rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=factor, q=factor)


def pixel_shuffle(x: Array, factor: int) -> Array:
    """The inverse of `pixel_unshuffle`."""
    return rearrange(x, "b h w (c p q) -> b (h p) (w q) c", p=factor, q=factor)


def timestep_embedding(t: Array, width: int, max_period: float = 10000.0) -> Array:
    """Sinusoids of the noise level: all sines, then all cosines (docs/models/paella.md 2.2).

    Args:
      t: float32 [batch] in [0, 1]. Stays float32: the angles reach 10 000 rad.
      width: embedding width, at least 4; an odd width ends in a zero column.
      max_period: t is multiplied by it, and the slowest sinusoid has this period over 2 pi.

    Returns:
      float32 [batch, width].
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-np.log(max_period) / (half - 1))
    # The exponents are float32 as in the reference, their exp correctly rounded: with numpy's own
    # float32 exp the last bit differs, which the angles turn into errors of 2e-4.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (t.astype(jnp.float32) * max_period)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width - 2 * half)))


class Dense(nn.Module):
    """Linear layer on the last axis: [..., C] -> [..., features]."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = xavier
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = dense(x.astype(self.dtype), kernel)
        if self.use_bias:
            x = add_bias(x, self.param("bias", nn.initializers.zeros, (self.features,)))
        return x


class GlobalResponseNorm(nn.Module):
    """GRN over the whole map [B, H, W, C] of each sample, statistics in float32.

    Source: docs/models/paella.md 2.3.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        gamma = self.param("gamma", nn.initializers.zeros, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        squares = jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True)
        # A channel that is zero everywhere has an infinite slope at sqrt(0): give it slope zero.
        norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        response = norm / (norm.mean(-1, keepdims=True) + 1e-6)
        scale = 1.0 + gamma.reshape(1, 1, 1, -1) * response
        return add_bias(x * scale.astype(x.dtype), beta)


class DepthwiseConv(nn.Module):
    """k x k depthwise convolution: [B, H, W, C * inputs_per_group] -> [B, H, W, C]."""

    kernel_size: int = 3
    inputs_per_group: int = 1
    padding: str = "zero"
    implementation: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1] // self.inputs_per_group
        shape = (self.kernel_size, self.kernel_size, self.inputs_per_group, channels)
        kernel = self.param("kernel", xavier, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = depthwise_conv(
            x.astype(self.dtype), kernel, padding=self.padding, implementation=self.implementation
        )
        return add_bias(x, bias)


class Downsample(nn.Module):
    """Stride-2 convolution, kernel size 2 or 4: [B, H, W, C] -> [B, H/2, W/2, features]."""

    features: int
    kernel_size: int = 2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", xavier, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = strided_conv(x.astype(self.dtype), kernel)
        return add_bias(x, bias)


class Upsample(nn.Module):
    """Transposed stride-2 convolution: [B, H, W, C] -> [B, 2H, 2W, features]."""

    features: int
    kernel_size: int = 2
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        # The reference leaves these at torch's default: U(-b, b), b = 1/sqrt(features * k * k).
        bound = 1.0 / np.sqrt(self.features * self.kernel_size**2)
        init = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", init, (self.features,))
        return add_bias(transposed_conv(x.astype(self.dtype), kernel), bias)


class MultiHeadAttention(nn.Module):
    """torch's MultiheadAttention with one joint input projection (joint Xavier,
    docs/models/paella.md 2.5).

    Queries come from `x`; keys and values from `x` followed by `context` (self_attention) or from
    `context` alone.
    """

    num_heads: int
    self_attention: bool = True
    dropout: float = 0.0
    dropped: str = "probabilities"  # as torch, or "output", which fused kernels allow: a deviation
    implementation: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Context,
        context_mask: Array | None = None,
        value_weights: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """x [B, N, C], context [B, L, C], context_mask bool [B, L] -> [B, N, C].

        `value_weights` [L'] or [B, L'] multiplies the attention probabilities of the last L' keys
        without renormalising (docs/models/paella.md 2.4); scaling those keys' values is the same
        thing.
        """
        channels = x.shape[-1]
        kernel = self.param("in_kernel", xavier, (channels, 3 * channels))
        bias = self.param("in_bias", nn.initializers.zeros, (3 * channels,))
        x = x.astype(self.dtype)

        if self.self_attention:
            joint = add_bias(dense(x, kernel), bias)
            query, image_kv = joint[..., :channels], joint[..., channels:]
        else:
            query = add_bias(dense(x, kernel[:, :channels]), bias[:channels])
            image_kv = x[:, :0, :1].repeat(2 * channels, axis=-1)
        of_context = prepared(self, "context", lambda: self._of_context(context, kernel, bias))
        key_value = jnp.concatenate([image_kv, of_context], axis=1)
        key, value = jnp.split(key_value, 2, axis=-1)

        key_mask = None
        if context_mask is not None:
            visible = jnp.ones((x.shape[0], image_kv.shape[1]), bool)
            key_mask = jnp.concatenate([visible, context_mask], axis=1)
        if value_weights is not None:
            weights = jnp.atleast_2d(value_weights).astype(value.dtype)
            lead = value.shape[1] - weights.shape[1]
            weights = jnp.pad(weights, ((0, 0), (lead, 0)), constant_values=1.0)
            value = value * weights[:, :, None]

        if self.dropped not in DROPPED:
            raise ValueError(f"attention_dropout {self.dropped!r} must be of {', '.join(DROPPED)}")
        inside = self.dropped == "probabilities" and not deterministic
        rate = self.dropout if inside else 0.0
        split = lambda y: rearrange(y, "b n (h d) -> b n h d", h=self.num_heads)
        y = dot_product_attention(
            split(query),
            split(key),
            split(value),
            key_mask=key_mask,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0 else None,
            implementation=self.implementation,
        )
        y = rearrange(y, "b n h d -> b n (h d)")
        if not inside:
            y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
        return Dense(channels, dtype=self.dtype, name="out")(y)

    def _of_context(self, context: Context, kernel: Array, bias: Array) -> Array:
        """Keys and values of the context [B, L, 2C]."""
        channels = len(kernel)
        if not isinstance(context, KeysAndValues):
            return add_bias(
                dense(context.astype(self.dtype), kernel[:, channels:]), bias[channels:]
            )
        parts = [
            add_bias(dense(x.astype(self.dtype), kernel[:, start:end]), bias[start:end])
            for x, start, end in zip(
                context, (channels, 2 * channels), (2 * channels, 3 * channels), strict=True
            )
        ]
        return jnp.concatenate(parts, axis=-1)
