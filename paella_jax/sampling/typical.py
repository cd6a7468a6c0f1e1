"""Locally typical filtering of logits (reference/paella.md 4.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def typical_filter(logits: Array, mass: float, min_tokens: int = 1) -> Array:
    """Drops the classes whose information content is far from the entropy.

    Args:
      logits: [..., classes].
      mass: probability mass to keep, in (0, 1).
      min_tokens: this many most typical classes are always kept.

    Returns:
      float32 logits with -inf where dropped.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    p = jnp.exp(log_p)
    entropy = -(p * log_p).sum(-1, keepdims=True)
    distance = jnp.abs(-log_p - entropy)
    order = jnp.argsort(distance, axis=-1)
    cumulative = jnp.cumsum(jnp.take_along_axis(p, order, -1), axis=-1)
    rank = jnp.minimum((cumulative < mass).sum(-1, keepdims=True), logits.shape[-1] - 1)
    rank = jnp.maximum(rank, min_tokens - 1)
    limit = jnp.take_along_axis(distance, jnp.take_along_axis(order, rank, -1), -1)
    return jnp.where(distance > limit, -jnp.inf, logits.astype(jnp.float32))
