"""The four residual blocks of Paella's U-Net: C (conv), T (timestep), A (attention), F (MLP).

Würstchen's stages use the same blocks. The formulas are in docs/models/paella.md 2.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.context import Context, mapped
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
from paella_jax.models.repeated import loop_over_layers
from paella_jax.typing import Array


class ResponseMlp(nn.Module):
    """Linear to 4C, GELU, GRN, dropout, linear 4C -> C (its init scaled by `residual_scale`).

    It maps [B, h, w, any] to [B, h, w, C]; C is `features`, by default the input's channels.
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
    """C: depthwise conv, norm, MLP. A map of the same size is concatenated before the conv."""

    kernel_size: int = 3
    residual_scale: float = 1.0
    dropout: float = 0.0
    depthwise: str = "auto"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, maps: tuple[Array, ...] = (), deterministic: bool = True) -> Array:
        """x and every one of maps [B, h, w, C] -> [B, h, w, C]."""
        # With a map there are two inputs per group, contiguous: the lower half of the output
        # channels sees only x, the upper half only the map. That is the reference's behaviour.
        hidden = DepthwiseConv(
            self.kernel_size,
            inputs_per_group=1 + len(maps),
            implementation=self.depthwise,
            dtype=self.dtype,
            name="depthwise",
        )(jnp.concatenate([x, *maps], axis=-1) if maps else x)
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
        """x [B, h, w, C], maps [B, h, w, any] -> [B, h, w, C]."""
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
        """x [B, h, w, C], time [B, time_width] -> [B, h, w, C]."""
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
    attention_dropout: str = "probabilities"
    attention: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        sequence: Context,
        sequence_mask: Array | None = None,
        value_weights: Array | None = None,
        deterministic: bool = True,
    ) -> Array:
        """x [B, h, w, C], sequence [B, L, D] -> [B, h, w, C]."""
        height, width = x.shape[1:3]
        project = lambda name, y: Dense(x.shape[-1], dtype=self.dtype, name=name)(nn.silu(y))
        context = mapped(sequence, project, "kv_mapper")
        queries = rearrange(layer_norm(x), "b h w c -> b (h w) c")
        y = MultiHeadAttention(
            self.num_heads,
            self.self_attention,
            self.dropout,
            self.attention_dropout,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )(queries, context, sequence_mask, value_weights, deterministic)
        return x + rearrange(y, "b (h w) c -> b h w c", h=height, w=width)


class FeedForwardBlock(nn.Module):
    """F: norm and MLP, no convolution: [B, h, w, C] -> [B, h, w, C]."""

    residual_scale: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        mlp = ResponseMlp(self.residual_scale, self.dropout, self.dtype, name="mlp")
        return x + mlp(layer_norm(x), deterministic)


def kept_by(name: str) -> Any:
    """What a recomputed block keeps for the way back, as `jax.checkpoint`'s policy.

    Args:
      name: "nothing", or "products", the results of matrix products: what lies between them is
        recomputed, which costs memory traffic and no products.

    Raises:
      ValueError: another name.
    """
    policies: dict[str, Any] = {
        "nothing": None,
        "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    if name not in policies:
        raise ValueError(f"remat_keeps {name!r} must be one of {', '.join(policies)}")
    return policies[name]


class BlockOptions(NamedTuple):
    """A network's settings of its blocks; `conv` is the class of its C blocks."""

    num_heads: int
    residual_scale: float
    dropout: float
    kernel_size: int
    self_attention: bool
    remat: bool
    remat_keeps: str
    depthwise: str
    attention_dropout: str
    attention: str | None
    dtype: Dtype
    conv: type[nn.Module] = ConvBlock


class BlockInputs(NamedTuple):
    """What the blocks of a network read beside the map that they change."""

    time: Array  # [batch, time_width]
    sequence: Context  # [batch, length, cond_width]
    mask: Array | None  # bool [batch, length]
    value_weights: Array | None  # as in `MultiHeadAttention`
    deterministic: bool


def run_blocks(
    x: Array,
    pattern: str,
    prefix: str,
    options: BlockOptions,
    inputs: BlockInputs,
    skip: tuple[Array, ...] = (),
    maps: tuple[Array, ...] = (),
    loop_in: nn.Module | None = None,
) -> Array:
    """Runs blocks named PREFIX_0, PREFIX_1, ... inside the calling module's compact `__call__`.

    Args:
      x: [batch, h, w, C].
      pattern: a letter of C, T, A, F for each block.
      prefix: start of the blocks' names.
      options: settings of the blocks.
      inputs: what T and A read.
      skip: a map that the first block reads, if it is a C.
      maps: further ones, which all C blocks read.
      loop_in: the calling module, where repetitions of the pattern's unit behind the first are to
        be one loop; None runs all blocks one by one.

    Returns:
      [batch, h, w, C].
    """
    unit = _unit(pattern)
    if loop_in is None or loop_in.is_initializing() or len(pattern) < 3 * len(unit):
        return _run(x, pattern, prefix, options, inputs, skip, maps)
    x = _run(x, unit, prefix, options, inputs, skip, maps)
    held = loop_in.variables["params"]
    group = lambda at: {f"block_{j}": held[f"{prefix}_{at + j}"] for j in range(len(unit))}
    params = [group(at) for at in range(len(unit), len(pattern), len(unit))]
    key = None
    if options.dropout and not inputs.deterministic:
        key = loop_in.make_rng("dropout")
    layer = BlockGroup(unit, options, parent=None)
    return loop_over_layers(layer, params, x, inputs, maps, key=key, keep=(loop_in, prefix))


def _unit(pattern: str) -> str:
    """The shortest text that a pattern repeats."""
    sizes = (n for n in range(1, len(pattern) + 1) if pattern == pattern[:n] * (len(pattern) // n))
    return pattern[: next(sizes, 0)]


class BlockGroup(nn.Module):
    """One repetition of a pattern: blocks named block_0, block_1, ..."""

    pattern: str
    options: BlockOptions

    @nn.compact
    def __call__(self, x: Array, inputs: BlockInputs, maps: tuple[Array, ...]) -> Array:
        return _run(x, self.pattern, "block", self.options, inputs, (), maps)


def _run(
    x: Array,
    pattern: str,
    prefix: str,
    options: BlockOptions,
    inputs: BlockInputs,
    skip: tuple[Array, ...],
    maps: tuple[Array, ...],
) -> Array:
    for index, kind in enumerate(pattern):
        block = _block(kind, options, f"{prefix}_{index}")
        if kind == "C":
            x = block(x, (*skip, *maps) if index == 0 else maps, inputs.deterministic)
        elif kind == "T":
            x = block(x, inputs.time)
        elif kind == "A":
            x = block(x, *inputs[1:])  # all but the time
        else:
            x = block(x, inputs.deterministic)
    return x


def _block(kind: str, options: BlockOptions, name: str) -> nn.Module:
    o = options
    kept = kept_by(o.remat_keeps)
    # `deterministic` is a Python bool and must stay one under remat (counted with self).
    remat = lambda cls, static: nn.remat(cls, static_argnums=static, policy=kept)
    wrap = lambda cls, *static: remat(cls, static) if o.remat else cls
    if kind == "C":
        return wrap(o.conv, 3)(
            o.kernel_size, o.residual_scale, o.dropout, o.depthwise, o.dtype, name=name
        )
    if kind == "T":
        return wrap(TimestepBlock)(o.dtype, name=name)
    if kind == "A":
        settings = (o.num_heads, o.self_attention, o.dropout, o.attention_dropout, o.attention)
        return wrap(AttentionBlock, 5)(*settings, o.dtype, name=name)
    return wrap(FeedForwardBlock, 2)(o.residual_scale, o.dropout, o.dtype, name=name)
