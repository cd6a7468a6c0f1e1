"""Locally typical filtering of logits (docs/models/paella.md 4.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array


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


def top_k_filter(logits: Array, count: int) -> Array:
    """Drops all but the `count` largest logits of each position.

    Args:
      logits: [..., classes].
      count: at least 1; from the number of classes on nothing is dropped. Classes that tie with
        the last one kept are kept as well.

    Returns:
      float32 logits with -inf where dropped.

    Raises:
      ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"top_k={count} must be at least 1")
    logits = logits.astype(jnp.float32)
    if count >= logits.shape[-1]:
        return logits
    smallest_kept = lax.top_k(logits, count)[0][..., -1:]
    return jnp.where(logits < smallest_kept, -jnp.inf, logits)
