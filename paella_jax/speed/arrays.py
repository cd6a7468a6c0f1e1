"""Random arrays of given shapes, made without compiling a program for each shape."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.typing import Array, Tree

DEVIATION = 0.02  # of random weights: small enough that a deep network's numbers stay finite
PERIOD = 1_000_003  # a prime, so that no row of a matrix repeats another


def filled(shapes: Tree, seed: int = 0) -> Tree:
    """Arrays of the shapes, types and shardings of a tree; what is an array already stays.

    Floats are normal with a deviation of 0.02 and repeat after a million, bytes uniform, other
    integers zero, bools true (texts are as long as they may be), and keys those of the seed.
    """
    random = np.random.default_rng(seed)
    numbers = (DEVIATION * random.standard_normal(PERIOD)).astype(np.float32)
    return jax.tree.map(lambda x: _filled(x, numbers, seed), shapes)


def _filled(x: Any, numbers: np.ndarray, seed: int) -> Array:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        keys = jnp.broadcast_to(jax.random.key(seed), x.shape)
        return keys if x.sharding is None else jax.device_put(keys, x.sharding)
    if jnp.issubdtype(x.dtype, jnp.floating):
        values = np.resize(numbers.astype(x.dtype), x.shape)
    elif x.dtype == np.uint8:
        values = np.resize(np.arange(256, dtype=np.uint8), x.shape)
    elif x.dtype == bool:
        values = np.ones(x.shape, bool)
    else:
        values = np.zeros(x.shape, x.dtype)
    return jax.device_put(values, x.sharding)
