"""A text that is found by one thing and read as another, in attention.

Attention finds a word by its key and reads its value. Usually both come from the word's state,
which knows the words around it. A small run then learns "red circle" as one thing and draws no red
square that it never saw. Keys from the states, values from the words alone keep what a word means
apart from where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from paella_jax.typing import Array


class KeysAndValues(NamedTuple):
    """Two sequences [batch, length, channels] of the same positions.

    Attributes:
      keys: what a position is found by.
      values: what is read there.
    """

    keys: Array
    values: Array


Context = Array | KeysAndValues  # one sequence that is both, or two


def both(context: Context) -> KeysAndValues:
    """Keys and values, the same array where there is one."""
    return context if isinstance(context, KeysAndValues) else KeysAndValues(context, context)


def mapped(context: Context, layer: Callable[[str, Array], Array], name: str) -> Context:
    """A context behind a layer of its own for keys and for values.

    Args:
      context: [batch, length, channels], or two of them.
      layer: (name, sequence) -> sequence.
      name: of the layer; the values' has "_values" behind it.
    """
    if not isinstance(context, KeysAndValues):
        return layer(name, context)
    return KeysAndValues(layer(name, context.keys), layer(f"{name}_values", context.values))


def joined(parts: list[Context]) -> Context:
    """Contexts behind each other, along the length."""
    keys = jnp.concatenate([both(part).keys for part in parts], axis=1)
    if not any(isinstance(part, KeysAndValues) for part in parts):
        return keys
    return KeysAndValues(keys, jnp.concatenate([both(part).values for part in parts], axis=1))
