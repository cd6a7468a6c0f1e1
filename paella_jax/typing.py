"""The three types that signatures everywhere speak of."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a PRNG key made by jax.random.key, or an array of them
Tree: TypeAlias = Any  # a nested dict of arrays: parameters, optimiser state, batches
