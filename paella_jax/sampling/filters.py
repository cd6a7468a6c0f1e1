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
    last = jnp.take_along_axis(order, rank, -1)
    # The last one by its index: XLA may compute a distance a second time for a second use, with
    # another last bit, and the limit would then drop the class that it is the distance of.
    kept = jax.nn.one_hot(last[..., 0], logits.shape[-1], dtype=bool)
    kept |= ~(distance > jnp.take_along_axis(distance, last, -1))
    return jnp.where(kept, logits.astype(jnp.float32), -jnp.inf)


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
    values, indices = lax.top_k(logits, count)
    # Those by their indices too, for the reason given in `typical_filter`.
    kept = jax.nn.one_hot(indices, logits.shape[-1], dtype=bool).any(-2)
    kept |= ~(logits < values[..., -1:])
    return jnp.where(kept, logits, -jnp.inf)
