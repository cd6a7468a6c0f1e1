"""Multi-head attention over already projected heads, with key padding mask and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_mask: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """softmax(q k^T / sqrt(head_dim)) v with the softmax in float32.

    Args:
      query: [batch, queries, heads, head_dim].
      key: [batch, keys, heads, head_dim].
      value: [batch, keys, heads, head_dim].
      key_mask: [batch, keys] bool, False keys are invisible. At least one key must be visible.
      dropout_rate: share of attention probabilities set to zero; needs `dropout_key` when > 0.
      dropout_key: PRNG key of the dropout.
      implementation: None (the backend's default), "xla" or "cudnn".

    Returns:
      [batch, queries, heads, head_dim] in the dtype of `query`.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if dropout_rate == 0.0:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation=implementation
        )
    # Fused kernels offer no dropout on the probabilities, so that case is written out.
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / jnp.sqrt(jnp.float32(query.shape[-1]))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1)
    keep = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probabilities.shape)
    probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(value.dtype), value)
