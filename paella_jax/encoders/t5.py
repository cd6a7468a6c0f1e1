"""T5 text encoder: T5, T5 v1.1, mT5 and ByT5 weights load into it, and it trains from scratch.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning", sections 2.1 and 3.1; the gated
form is Shazeer 2020, "GLU Variants Improve Transformer". What sets T5 apart: RMS norms without
bias, no attention scaling (the initial values carry it), no biases anywhere, and one relative
position bias shared by all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.encoders.relative_bias import local_bias, relative_buckets
from paella_jax.encoders.words import word_vectors
from paella_jax.models.layers import Dense
from paella_jax.models.repeated import loop_over_layers
from paella_jax.ops.attention import attend_heads_first, self_attend_heads_first

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}

# Hugging Face `feed_forward_proj` -> (gated, activation). Their "gated-gelu" is the tanh form.
FEED_FORWARDS = {
    "relu": (False, "relu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu_tanh"),
    "gelu_new": (False, "gelu_tanh"),
    "gated-gelu_new": (True, "gelu_tanh"),
}


def dense(features: int, init_std: float, dtype: Any, name: str) -> Dense:
    """A bias-free linear layer with normal initial values."""
    init = nn.initializers.normal(init_std)
    return Dense(features, False, init, dtype, name=name)


class Attention(nn.Module):
    """Unscaled self-attention with an additive float32 bias [batch or 1, heads, query, key]."""

    num_heads: int
    head_dim: int
    dropout: float = 0.0
    kernel: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, *, deterministic: bool = True) -> jax.Array:
        batch, length, width = x.shape
        inner = self.num_heads * self.head_dim

        def project(name: str, std: float) -> jax.Array:
            y = dense(inner, std, self.dtype, name)(x)
            return y.reshape(batch, length, self.num_heads, self.head_dim).swapaxes(1, 2)

        # The query's smaller start takes the place of 1/sqrt(head_dim).
        query = project("query", (width * self.head_dim) ** -0.5)
        key, value = project("key", width**-0.5), project("value", width**-0.5)
        rate = 0.0 if deterministic else self.dropout
        if rate > 0.0:
            y = attend_heads_first(query, key, value, bias, rate, self.make_rng("dropout"))
        else:
            y = self_attend_heads_first(query, key, value, bias, implementation=self.kernel)
        y = y.swapaxes(1, 2).reshape(batch, length, inner)
        return dense(width, inner**-0.5, self.dtype, "out")(y)


class FeedForward(nn.Module):
    """Two dense layers; when gated, the hidden units are act(wi_0 x) * (wi_1 x)."""

    hidden_dim: int
    gated: bool
    activation: str
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        width = x.shape[-1]

        def project(name: str, features: int, x: jax.Array) -> jax.Array:
            std = x.shape[-1] ** -0.5
            return dense(features, std, self.dtype, name)(x)

        hidden = ACTIVATIONS[self.activation](project("wi_0", self.hidden_dim, x))
        if self.gated:
            hidden = hidden * project("wi_1", self.hidden_dim, x)
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=deterministic)
        return project("wo", width, hidden)


class Block(nn.Module):
    """Pre-norm attention and feed-forward. The residual stream x stays float32, as released T5
    weights reach magnitudes that lose digits (bfloat16) or overflow (float16) there."""

    num_heads: int
    head_dim: int
    hidden_dim: int
    gated: bool
    activation: str
    norm_epsilon: float
    dropout: float
    kernel: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, deterministic: bool) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        norm = lambda name: nn.RMSNorm(self.norm_epsilon, dtype=jnp.float32, name=name)
        sizes = (self.num_heads, self.head_dim, self.dropout, self.kernel)
        attention = Attention(*sizes, dtype=self.dtype, name="attention")
        y = attention(norm("attention_norm")(x), bias, deterministic=deterministic)
        x = x + drop(y).astype(jnp.float32)
        mlp = FeedForward(
            self.hidden_dim, self.gated, self.activation, self.dropout, dtype=self.dtype, name="mlp"
        )
        y = mlp(norm("mlp_norm")(x), deterministic=deterministic)
        return x + drop(y).astype(jnp.float32)


class T5Encoder(nn.Module):
    """Ids to one vector per token. With a mask, padding changes nothing at the real positions."""

    vocab_size: int  # 0: ids are words, whose fixed vectors are mapped (encoders/words.py)
    width: int
    num_layers: int  # 0: the embeddings, normed
    num_heads: int
    head_dim: int  # num_heads * head_dim need not be width
    hidden_dim: int  # of the feed-forward layers
    gated: bool = True
    activation: str = "gelu_tanh"  # or "relu"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    local_start: bool = False  # start from heads that look at near bytes (`local_bias`)
    loop: bool = False  # the blocks as one loop: compiles in a fraction of the time
    kernel: str = "xla"  # of attention (ops/attention.py)
    word_values: bool = False  # the result is two: the states, and each word by itself
    dtype: Any = jnp.float32  # of the matrix products and the result

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array | None = None,
        *,
        deterministic: bool = True,
        all_hidden: bool = False,
    ) -> Any:
        """Encodes a batch of texts.

        Args:
          ids: [batch, length] integers below `vocab_size`, where it is not 0; others give nan.
          mask: [batch, length], True (or non-zero) at real tokens; None attends to padding too,
            as the Paella reference does. Rows at padding are defined: they see the real tokens.
          deterministic: False draws dropout from the "dropout" key.
          all_hidden: also return the states on the way.

        Returns:
          [batch, length, width] in `dtype`, after the final norm; with `word_values` a pair of
          such, these states and the normed embeddings (models/context.py). With `all_hidden` a
          list of num_layers + 1 such arrays: the embeddings, the states after every block but the
          last, and the result.

        Raises:
          ValueError: `ids` is not a matrix of integers, `mask` has another shape, or `activation`
            is unknown.
        """
        self._check(ids, mask)
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        x = drop(self._embed(ids))
        bias = self._bias(ids.shape[1], mask) if self.num_layers else None
        states = [x]
        looped = self.loop and not (all_hidden or self.is_initializing()) and deterministic
        if looped and bias is not None:
            x = self._looped(x, bias)
            states.append(x)
        else:
            for i in range(self.num_layers):
                x = self._block(f"block_{i}")(x, bias, deterministic=deterministic)
                states.append(x)
        norm = nn.RMSNorm(self.norm_epsilon, dtype=jnp.float32, name="final_norm")
        states[-1] = drop(norm(x))
        if all_hidden:
            return [s.astype(self.dtype) for s in states]
        if self.word_values:
            words = nn.RMSNorm(self.norm_epsilon, dtype=jnp.float32, name="word_norm")(states[0])
            return states[-1].astype(self.dtype), words.astype(self.dtype)
        return states[-1].astype(self.dtype)

    def _embed(self, ids: jax.Array) -> jax.Array:
        if not self.vocab_size:
            vectors = word_vectors(ids)
            std = vectors.shape[-1] ** -0.5
            return dense(self.width, std, jnp.float32, "embedding")(vectors)
        shape = (self.vocab_size, self.width)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        return jnp.take(table, ids, axis=0, mode="fill").astype(jnp.float32)

    def _looped(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        params = [self.variables["params"][f"block_{i}"] for i in range(self.num_layers)]
        return loop_over_layers(self._block(None), params, x, bias, True, cast=self.dtype)

    def _block(self, name: str | None) -> Block:
        """One block; without a name it belongs to no module."""
        return Block(
            parent=None if name is None else self,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            hidden_dim=self.hidden_dim,
            gated=self.gated,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dropout=self.dropout,
            kernel=self.kernel,
            dtype=self.dtype,
            name=name,
        )

    def _bias(self, length: int, mask: jax.Array | None) -> jax.Array:
        """Relative position bias plus the mask, float32 [batch or 1, heads, query, key]."""
        init = nn.initializers.normal(self.width**-0.5)
        if self.local_start:
            init = local_bias(self.relative_max_distance)
        shape = (self.relative_buckets, self.num_heads)
        table = self.param("relative_bias", init, shape).astype(jnp.float32)
        buckets = relative_buckets(length, self.relative_buckets, self.relative_max_distance)
        bias = jnp.take(table, buckets, axis=0).transpose(2, 0, 1)[None]
        if mask is None:
            return bias
        # Finite, so that a row without any real token is uniform attention and not nan.
        hidden = jnp.where(mask.astype(bool), 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
        full = (mask.shape[0], self.num_heads, length, length)
        return jnp.broadcast_to(bias, full) + jnp.broadcast_to(hidden, full)

    def _check(self, ids: jax.Array, mask: jax.Array | None) -> None:
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers [batch, length], not {ids.dtype} {ids.shape}")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"mask has shape {mask.shape}, ids have {ids.shape}; they must agree")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}, not in {sorted(ACTIVATIONS)}")


def t5_from_hf_config(config: dict[str, Any]) -> T5Encoder:
    """The encoder that a Hugging Face `config.json` of model type t5 or mt5 describes.

    Raises:
      ValueError: another model type, an unsupported `feed_forward_proj`, or fields missing.
    """
    kind = config.get("model_type", "t5")
    if kind not in ("t5", "mt5"):
        raise ValueError(f"model_type is {kind!r}; this encoder reads t5 and mt5 (ByT5 is t5)")
    # The two defaults are those of transformers' T5Config and MT5Config, for old config files.
    forward = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if forward not in FEED_FORWARDS:
        raise ValueError(f"feed_forward_proj is {forward!r}, not in {list(FEED_FORWARDS)}")
    needed = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    missing = [name for name in needed if name not in config]
    if missing:
        raise ValueError(f"the T5 config lacks {', '.join(missing)}")
    gated, activation = FEED_FORWARDS[forward]
    return T5Encoder(
        vocab_size=config["vocab_size"],
        width=config["d_model"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        head_dim=config["d_kv"],
        hidden_dim=config["d_ff"],
        gated=gated,
        activation=activation,
        relative_buckets=config.get("relative_attention_num_buckets", 32),
        relative_max_distance=config.get("relative_attention_max_distance", 128),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
        dropout=config.get("dropout_rate", 0.0),
    )
