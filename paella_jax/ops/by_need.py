"""A batch of rows that need more or less work, each part of it done by the least that serves it.

The rows of each device are sorted by what they need and cut into parts; a part is done by the
branch that its neediest row asks for. All devices take the same branch at the same time, so that a
branch may hold collectives, as those of weights that are sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from paella_jax.ops.batch_axis import batch_shards, constrain_batch
from paella_jax.typing import Array, Tree

PARTS = 8  # of a device's rows, at most
FEWEST_ROWS = 4  # of a part: fewer keep no accelerator busy


def parts_of(batch: int) -> int:
    """Into how many parts a batch is cut; 1 where sorting cannot pay."""
    local, rest = divmod(batch, batch_shards())
    able = [n for n in range(1, PARTS + 1) if local % n == 0 and local // n >= FEWEST_ROWS]
    return 1 if rest else max(able, default=1)


def by_need(branches: Sequence[Callable[[Tree], Tree]], need: Array, rows: Tree) -> Tree:
    """What the last branch makes of every row, with cheaper branches where they do.

    Args:
      branches: rows [some, ...] -> values [some, ...], the cheapest first, all of the same shapes
        and types. They do not look from one row at another one.
      need: int32 [batch], the first branch that serves a row; all behind it do too.
      rows: arrays [batch, ...].

    Returns:
      Arrays [batch, ...], in the order of the rows.
    """
    parts, shards = parts_of(len(need)), batch_shards()
    if parts == 1:
        return branches[-1](rows)
    order = jnp.argsort(need.reshape(shards, -1), axis=1)
    cut = lambda x: _to_parts(_take(x, order), parts, shards)
    most = cut(need).max(1)

    def run(part: tuple[Array, Tree]) -> Tree:
        least, some = part
        return constrain_batch(jax.lax.switch(least, branches, constrain_batch(some)))

    done = jax.lax.map(run, (most, jax.tree.map(cut, rows)))
    back = jnp.argsort(order, axis=1)
    return jax.tree.map(lambda x: _take(_from_parts(x, shards), back), done)


def _take(x: Array, order: Array) -> Array:
    """Rows [batch, ...] in another order within each device's; order [shards, rows]."""
    local = x.reshape(*order.shape, *x.shape[1:])
    index = order.reshape(*order.shape, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(local, index, axis=1).reshape(x.shape)


def _to_parts(x: Array, parts: int, shards: int) -> Array:
    """[batch, ...] -> [parts, rows, ...], of which each has rows of every device."""
    cut = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    return cut.reshape(parts, -1, *x.shape[1:])


def _from_parts(x: Array, shards: int) -> Array:
    """The inverse."""
    cut = x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)
    return cut.reshape(-1, *x.shape[2:])
