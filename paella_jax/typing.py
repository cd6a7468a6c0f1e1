"""The types that signatures everywhere speak of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # a PRNG key made by jax.random.key, or an array of them
Tree: TypeAlias = Any  # a nested dict of arrays: parameters, optimiser state, batches
Tensors: TypeAlias = Mapping[str, np.ndarray]  # a state dict: tensors by their published names
