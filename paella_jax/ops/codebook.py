"""Nearest entry of a codebook."""

from __future__ import annotations

import jax.numpy as jnp

from paella_jax.ops.linear import dense
from paella_jax.typing import Array


def nearest_code(vectors: Array, codebook: Array) -> Array:
    """Index of the closest code in squared Euclidean distance, expanded form.

    Source: docs/models/paella.md 5.

    Args:
      vectors: [..., C].
      codebook: [codes, C].

    Returns:
      int32 [...].
    """
    vectors, codebook = vectors.astype(jnp.float32), codebook.astype(jnp.float32)
    # |v|^2 is the same for every code and does not change which one is closest.
    norms = jnp.square(codebook).sum(-1).reshape((1,) * (vectors.ndim - 1) + (-1,))
    return jnp.argmin(norms - 2.0 * dense(vectors, codebook.T), axis=-1).astype(jnp.int32)
