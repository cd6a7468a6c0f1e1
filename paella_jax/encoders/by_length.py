"""Short texts beside long ones: a frozen encoder sees each at about its own length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from paella_jax.ops.by_need import by_need
from paella_jax.typing import Array


def encode_by_length(
    encode: Callable[[Array, Array], Array], ids: Array, mask: Array, buckets: int
) -> Array:
    """The states of texts, of which the encoder never looks at padding.

    Texts are sorted by length, and the short ones' padding is cut off before they are encoded
    (ops/by_need.py): a captioned data set's texts fill a fourth of what its longest ones need.

    Args:
      encode: (ids, mask) [some, any length] -> states [some, that length, width].
      ids: int32 [batch, length].
      mask: bool [batch, length], True at real ids.
      buckets: into how many lengths, equally far apart, texts are sorted.

    Returns:
      [batch, length, width]; zeros at padding that was cut off.
    """
    length = ids.shape[1]
    lengths = sorted({-(-length * n // buckets) for n in range(1, buckets + 1)})
    used = jnp.where(mask, jnp.arange(1, length + 1), 0).max(1)
    need = jnp.searchsorted(jnp.asarray(lengths), used)

    def cut(short: int, rows: tuple[Array, Array]) -> Array:
        ids, mask = rows
        states = encode(ids[:, :short], mask[:, :short])
        return jnp.pad(states, ((0, 0), (0, length - short), (0, 0)))

    return by_need([partial(cut, short) for short in lengths], need.astype(jnp.int32), (ids, mask))
