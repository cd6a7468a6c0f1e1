"""Values onto the mesh and back, of one process or of several that each hold a part."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paella_jax.ops.batch_axis import BATCH
from paella_jax.typing import Tree


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The batch axis over ("fsdp", "data")."""
    return NamedSharding(mesh, BATCH)


def shard_batch(local: dict[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays sharded over the mesh.

    Args:
      local: arrays of the rows that `local_rows` gives, in that order.
      batch_size: of the global batch.
      mesh: a process may hold any of its rows, those of other processes too (a tensor axis).
    """
    sharding = batch_sharding(mesh)
    position = _positions(batch_size, mesh)
    size = sharding.shard_shape((batch_size,))[0]

    def put(x: np.ndarray) -> jax.Array:
        # The rows of one device follow one another in the batch, so they do here.
        rows = lambda index: x[(at := position[index[0].start or 0]) : at + size]
        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, rows)

    # To jax an array from a callback is an implicit transfer where there are several processes.
    with jax.transfer_guard("allow"):
        return jax.tree.map(put, local)


@cache  # asked for at every step
def _positions(batch_size: int, mesh: Mesh) -> dict[int, int]:
    """Row of the global batch -> its place among this process's rows."""
    return {row: i for i, row in enumerate(local_rows(batch_size, mesh))}


def local_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that this process's devices hold, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    slices = [index[0] for index in held if index is not None]
    return sorted({row for rows in slices for row in range(*rows.indices(batch_size))})


def abstract_batch(sample: dict[str, np.ndarray], batch_size: int, mesh: Mesh) -> Tree:
    """Shapes and shardings of the global batch, for compiling before the first batch."""
    describe = lambda x: jax.ShapeDtypeStruct(
        (batch_size, *np.shape(x)),
        jax.dtypes.canonicalize_dtype(np.asarray(x).dtype),
        sharding=batch_sharding(mesh),
    )
    return jax.tree.map(describe, sample)


def place(tree: Tree, shardings: Tree) -> Tree:
    """Puts values that every process has onto the mesh; each device gets its own part only.

    Args:
      tree: arrays, of numpy or of this process.
      shardings: one for all, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(sharding: NamedSharding, x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(sharding, jax.random.key_data(x)))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)  # from one layout of the mesh to another
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    each = lambda sharding, part: jax.tree.map(lambda x: put(sharding, x), part)
    return jax.tree.map(each, shardings, tree)


def fetch(x: jax.Array) -> np.ndarray:
    """The whole of a global array as numpy, on every process."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    assert isinstance(x.sharding, NamedSharding)
    whole = NamedSharding(x.sharding.mesh, P())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))
