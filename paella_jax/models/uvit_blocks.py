"""Blocks of aMUSEd's U-ViT (docs/models/muse.md 2.3): convolutional stage and transformer."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.context import Context, both, mapped
from paella_jax.models.layers import Dense, Dtype, GlobalResponseNorm, gelu
from paella_jax.models.transformer_layers import (
    LearnedLayerNorm,
    RootMeanSquareNorm,
    SeparateAttention,
    linear_init,
    normal,
    zeros,
)
from paella_jax.ops.depthwise import depthwise_conv
from paella_jax.ops.linear import strided_conv, transposed_conv
from paella_jax.typing import Array


def modulate(x: Array, scale_and_shift: Array) -> Array:
    """x (1 + scale) + shift; x [batch, ..., C], scale_and_shift [batch, 2C]."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (-1,)
    scale, shift = (part.reshape(shape) for part in jnp.split(scale_and_shift, 2, axis=-1))
    return x * (1.0 + scale) + shift


class ConvStageBlock(nn.Module):
    """Depthwise convolution and GRN MLP; the condition modulates the residual sum."""

    use_bias: bool = False
    learned_norms: bool = True
    epsilon: float = 1e-6
    dropout: float = 0.0
    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array, deterministic: bool = True) -> Array:
        """x [B, h, w, C], condition [B, D] -> [B, h, w, C]."""
        channels = x.shape[-1]
        project = lambda width, name, init=linear_init: Dense(
            width, self.use_bias, kernel_init=init, dtype=self.dtype, name=name
        )
        kernel = self.param("depthwise_kernel", normal, (3, 3, 1, channels)).astype(self.dtype)
        hidden = depthwise_conv(x, kernel, implementation=self.depthwise)
        if self.use_bias:
            bias = self.param("depthwise_bias", zeros, (channels,)).astype(self.dtype)
            hidden = hidden + bias.reshape(1, 1, 1, -1)
        hidden = RootMeanSquareNorm(self.learned_norms, self.epsilon, name="norm")(hidden)
        hidden = gelu(project(4 * channels, "expand")(hidden))
        hidden = GlobalResponseNorm(dtype=self.dtype, name="response_norm")(hidden)
        hidden = project(channels, "contract")(hidden)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        return modulate(x + hidden, project(2 * channels, "modulation", zeros)(nn.silu(condition)))


class TextAttentionBlock(nn.Module):
    """Two attentions to the text, both cross-attention, over one shared projection of it."""

    num_heads: int
    use_bias: bool = False
    dropout: float = 0.0
    attention: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, text: Context, text_mask: Array | None = None, deterministic: bool = True
    ) -> Array:
        """x [B, h, w, C], text [B, L, D], text_mask bool [B, L] or None -> [B, h, w, C]."""
        height, width, channels = x.shape[1:]
        x = rearrange(x, "b h w c -> b (h w) c")
        if both(text).keys.shape[-1] != channels:
            # Of equal width, the text is taken as it is: without the SiLU as well.
            mapper = partial(Dense, channels, self.use_bias, linear_init, self.dtype)
            text = mapped(text, lambda name, y: mapper(name=name)(nn.silu(y)), "text_mapper")
        for number in (1, 2):
            # The reference fixes these norms: always learned, always 1e-6.
            y = RootMeanSquareNorm(name=f"norm_{number}")(x)
            x = x + SeparateAttention(
                self.num_heads,
                self.use_bias,
                self.dropout,
                self.attention,
                self.dtype,
                name=f"attention_{number}",
            )(y, text, text_mask, deterministic)
        return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)


class AdaptiveNorm(nn.Module):
    """A norm, then scale and shift from the condition."""

    subtract_mean: bool = False  # layer norm, else root mean square
    use_bias: bool = False
    learned_norms: bool = True
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """x [B, N, C], condition [B, D] -> [B, N, C]."""
        mapper = Dense(
            2 * x.shape[-1], self.use_bias, kernel_init=zeros, dtype=self.dtype, name="modulation"
        )
        norm: nn.Module
        if self.subtract_mean:
            norm = LearnedLayerNorm(self.learned_norms, self.use_bias, self.epsilon, name="norm")
        else:
            norm = RootMeanSquareNorm(self.learned_norms, self.epsilon, name="norm")
        return modulate(norm(x), mapper(nn.silu(condition)))


class GatedFeedForward(nn.Module):
    """Linear to 2F, the first half times GELU of the second, linear back."""

    features: int
    use_bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        project = lambda width, name: Dense(
            width, self.use_bias, kernel_init=linear_init, dtype=self.dtype, name=name
        )
        value, gate = jnp.split(project(2 * self.features, "expand")(x), 2, axis=-1)
        hidden = nn.Dropout(self.dropout)(value * gelu(gate), deterministic=deterministic)
        return project(x.shape[-1], "contract")(hidden)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each behind an adaptive norm.

    The third norm subtracts the mean, the first two do not.
    """

    num_heads: int
    feed_forward_width: int
    use_bias: bool = False
    learned_norms: bool = True
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        text: Context,
        text_mask: Array | None,
        condition: Array,
        deterministic: bool = True,
    ) -> Array:
        """x [B, N, C], text [B, L, C], mask bool [B, L] or None, condition [B, D]."""
        norm = lambda number: AdaptiveNorm(
            number == 3,
            self.use_bias,
            self.learned_norms,
            self.epsilon,
            self.dtype,
            name=f"norm_{number}",
        )
        attend = lambda number: SeparateAttention(
            self.num_heads,
            self.use_bias,
            self.dropout,
            self.attention,
            self.dtype,
            name=f"attention_{number}",
        )
        y = norm(1)(x, condition)
        x = x + attend(1)(y, y, None, deterministic)
        x = x + attend(2)(norm(2)(x, condition), text, text_mask, deterministic)
        feed_forward = GatedFeedForward(
            self.feed_forward_width, self.use_bias, self.dropout, self.dtype, name="feed_forward"
        )
        return x + feed_forward(norm(3)(x, condition), deterministic)


class Resample(nn.Module):
    """Norm, then a stride-2 2x2 convolution (down) or transposed convolution (up)."""

    up: bool
    use_bias: bool = False
    learned_norms: bool = True
    epsilon: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, 2h, 2w, C] or [B, h/2, w/2, C]."""
        channels = x.shape[-1]
        x = RootMeanSquareNorm(self.learned_norms, self.epsilon, name="norm")(x)
        kernel = self.param("kernel", linear_init, (2, 2, channels, channels)).astype(self.dtype)
        x = (transposed_conv if self.up else strided_conv)(x, kernel)
        if self.use_bias:
            bias = self.param("bias", zeros, (channels,)).astype(self.dtype)
            x = x + bias.reshape(1, 1, 1, -1)
        return x
