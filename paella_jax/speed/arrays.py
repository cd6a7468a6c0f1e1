"""Random arrays of given shapes, made where they are used."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.typing import Array, Tree

DEVIATION = 0.02  # of random weights: small enough that a deep network's numbers stay finite


def filled(shapes: Tree, seed: int = 0) -> Tree:
    """Arrays of the shapes, types and shardings of a tree; what is an array already stays.

    Floats are normal with a deviation of 0.02, bytes uniform, other integers and bools zero, and
    keys those of a seed. They are made on the device, one after the other.
    """
    counter = iter(range(2**31))
    return jax.tree.map(lambda x: _filled(x, seed, next(counter)), shapes)


def _filled(x: Any, seed: int, number: int) -> Array:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return jnp.asarray(x)
    if x.sharding is None:
        return _make(seed, number, x.shape, x.dtype)
    make = jax.jit(partial(_random, shape=x.shape, dtype=x.dtype), out_shardings=x.sharding)
    return make(seed, number)


def _random(seed: Any, number: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    # The generator of the hardware: nobody needs these numbers again.
    key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), number)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(seed), shape)
    if jnp.issubdtype(dtype, jnp.floating):
        return (DEVIATION * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
    if dtype == np.uint8:
        return jax.random.bits(key, shape, np.uint8)
    return jnp.zeros(shape, dtype)


_make = jax.jit(_random, static_argnums=(2, 3))
