"""Keeping the most probable classes of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


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
