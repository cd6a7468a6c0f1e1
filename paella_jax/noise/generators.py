"""Which generator makes the random numbers of dropout.

Threefry, JAX's own, gives the same numbers on every device and costs some hundred operations for
each. On accelerators the hardware's generator ("rbg") costs a few, but what it gives depends on the
kind of device and its compiler, and on how an array is spread over devices. Dropout is the only
reader: what a run learns from, its noise levels and its tokens are threefry's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from paella_jax.ops.target import target_platform
from paella_jax.typing import Array

GENERATORS = ("auto", "threefry", "rbg")


def dropout_key(key: Array, generator: str) -> Array:
    """A threefry key as a key of the chosen generator.

    Args:
      key: scalar PRNG key.
      generator: of `GENERATORS`; "auto" is threefry on CPU and rbg elsewhere.

    Raises:
      ValueError: another name.
    """
    if generator not in GENERATORS:
        raise ValueError(f"dropout_generator {generator!r} must be one of {', '.join(GENERATORS)}")
    if generator == "auto":
        generator = "threefry" if target_platform() == "cpu" else "rbg"
    if generator == "threefry":
        return key
    words = jax.random.key_data(key)
    return jax.random.wrap_key_data(jnp.concatenate([words, words]), impl="rbg")
