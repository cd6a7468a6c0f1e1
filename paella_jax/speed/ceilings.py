"""What a device can do at most, as measured: products, and bytes to and from its memory."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

ROUNDS = 5


def matmul_ceiling(dtype: str) -> float:
    """FLOP/s of a large square matrix product on one device, best of several."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    return 2 * size**3 / _least(jax.jit(lambda a: a @ a), a)


def memory_ceiling() -> float:
    """Bytes/s of a large copy on one device, those read and those written, best of several."""
    count = 2**24 if jax.default_backend() == "cpu" else 2**29
    x = jnp.zeros(count, jnp.float32)
    return 2 * x.nbytes / _least(jax.jit(lambda x: x + 1.0), x)


def _least(function: Any, x: jax.Array) -> float:
    """Seconds of a call, of several that are handed over at once, least of several rounds."""
    calls = 1 if jax.default_backend() == "cpu" else 10
    jax.block_until_ready(function(x))
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready([function(x) for _ in range(calls)][-1])
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds)
