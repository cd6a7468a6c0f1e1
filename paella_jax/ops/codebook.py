"""Nearest entry of a codebook."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from paella_jax.ops.linear import dense
from paella_jax.typing import Array

CHUNK = 512  # codes compared at a time


def nearest_code(vectors: Array, codebook: Array) -> Array:
    """Index of the closest code in squared Euclidean distance, expanded form.

    Large codebooks are searched in chunks: all distances at once would be 1 GiB for the 8 x 64 x 64
    vectors of 8 images and 8192 codes. Of equally close codes the first is taken, as `argmin` does.
    Source: docs/models/paella.md 5.

    Args:
      vectors: [..., C].
      codebook: [codes, C].

    Returns:
      int32 [...].
    """
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    codebook = jax.lax.stop_gradient(codebook).astype(jnp.float32)
    # |v|^2 is the same for every code and does not change which one is closest.
    norms = jnp.square(codebook).sum(-1)
    codes = codebook.shape[0]
    if codes <= CHUNK:
        return jnp.argmin(_distances(vectors, codebook, norms), axis=-1).astype(jnp.int32)
    chunks = -(-codes // CHUNK)
    fill = chunks * CHUNK - codes  # codes infinitely far away
    codebook = jnp.pad(codebook, ((0, fill), (0, 0))).reshape(chunks, CHUNK, -1)
    norms = jnp.pad(norms, (0, fill), constant_values=jnp.inf).reshape(chunks, CHUNK)

    def closer(best: tuple[Array, Array], chunk: tuple[Array, ...]) -> tuple[tuple, None]:
        smallest, index = best
        first, codes, norms = chunk
        distances = _distances(vectors, codes, norms)
        found = distances.min(-1)
        member = first + jnp.argmin(distances, axis=-1).astype(jnp.int32)
        nearer = found < smallest
        return (jnp.where(nearer, found, smallest), jnp.where(nearer, member, index)), None

    shape = vectors.shape[:-1]
    start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    firsts = jnp.arange(chunks, dtype=jnp.int32) * CHUNK
    return jax.lax.scan(closer, start, (firsts, codebook, norms))[0][1]


def _distances(vectors: Array, codebook: Array, norms: Array) -> Array:
    # In whole float32 on every backend: with products in bfloat16 other codes would win.
    with jax.default_matmul_precision("highest"):
        products = dense(vectors, codebook.T)
    return norms.reshape((1,) * (vectors.ndim - 1) + (-1,)) - 2.0 * products
