"""Multi-head attention over already projected heads, with key padding mask and dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: Any = None,
) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v with the softmax in float32.

    Args:
      query: [batch, queries, heads, head_dim].
      key: [batch, keys, heads, head_dim].
      value: [batch, keys, heads, head_dim].
      key_mask: [batch, keys] bool, False keys are invisible. At least one key must be visible.
      dropout_rate: fraction of the probabilities set to zero; needs `dropout_key` when > 0.
      dropout_key: PRNG key of the dropout.
      implementation: None (the backend's default), "xla" or "cudnn".

    Returns:
      [batch, queries, heads, head_dim] in the dtype of `query`.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    explicit = partial(_attend, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if dropout_rate > 0.0:
        return explicit(query, key, value, mask)  # fused kernels drop no probabilities
    fused = partial(_fused, implementation=implementation)
    return lax.platform_dependent(query, key, value, mask, cpu=explicit, default=fused)


def attend_heads_first(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """softmax(q k^T + bias) v on [batch, heads, length, head_dim]; no scaling.

    With the heads in front XLA:CPU runs plain matrix products, up to three times faster than the
    same einsum on [batch, length, heads, head_dim].
    """
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    probabilities = jax.nn.softmax(scores, axis=-1)
    if dropout_rate > 0.0:
        assert dropout_key is not None, "dropout needs a key"
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.matmul(probabilities.astype(value.dtype), value)


def _attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    dropout_rate: float,
    dropout_key: Array | None,
) -> Array:
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    bias = None if mask is None else jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    query, key, value = heads_first(query), heads_first(key), heads_first(value)
    return heads_first(attend_heads_first(query, key, value, bias, dropout_rate, dropout_key))


def _fused(
    query: Array, key: Array, value: Array, mask: Array | None, implementation: Any
) -> Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
