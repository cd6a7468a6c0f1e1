"""T5's relative positions: which distances share a bias, and where a small encoder's biases start.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every query-key distance, int32 [length, length].

    Half of the buckets serve keys after the query. Of each half, the first half holds one distance
    each, the rest grow logarithmically up to `max_distance`. In numpy, at trace time: the log is
    then rounded the same on every device.

    Raises:
      ValueError: too few buckets, or all distances up to `max_distance` have their own.
    """
    half = num_buckets // 2
    exact = half // 2
    if not 0 < exact < max_distance:
        raise ValueError(
            f"relative_buckets {num_buckets} and relative_max_distance {max_distance} do not fit: "
            "use at least 4 buckets and a distance above a quarter of them"
        )
    position = np.arange(length, dtype=np.int32)
    offset = position[None, :] - position[:, None]  # key - query
    distance = np.abs(offset)
    # Distance 0 is never looked up in the log branch.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + np.maximum(ratio, 0).astype(np.int32), half - 1)
    bucket = np.where(distance < exact, distance, far) + half * (offset > 0)
    return bucket.astype(np.int32)


def local_bias(max_distance: int) -> Callable[..., jax.Array]:
    """Initial relative bias [buckets, heads] that makes heads look at their neighbourhood.

    Even heads look back, odd ones ahead, each further pair four times as far. Not T5's own start:
    a small byte-level encoder has to make words of bytes first, and learns it much sooner so.
    """

    def init(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        buckets, heads = shape
        table = relative_buckets(2 * max_distance + 1, buckets, max_distance)[max_distance]
        offset = np.arange(-max_distance, max_distance + 1)
        distance = np.array([np.abs(offset[table == b]).min(initial=10**6) for b in range(buckets)])
        ahead = np.array([(offset[table == b] > 0).any() for b in range(buckets)])
        bias = np.zeros(shape, np.float32)
        for head in range(heads):
            wrong_side = (ahead != bool(head % 2)) & (distance > 0)
            slope = 0.5 / 4.0 ** (head // 2)
            bias[:, head] = -slope * np.minimum(distance, max_distance) - 4.0 * wrong_side
        return jnp.asarray(bias)

    return init
