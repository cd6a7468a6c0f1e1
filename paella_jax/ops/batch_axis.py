"""Where the batch axis lies on a mesh, for the few places that pin it.

The batch is sharded over ("fsdp", "data") in that order. With ("data", "fsdp") XLA returns
silently wrong gradients on meshes whose fsdp and tensor sizes are equal (docs/jax.md 3.1).
"""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec as P

from paella_jax.typing import Tree

AXES = ("fsdp", "data")
BATCH = P(AXES)


def batch_shards() -> int:
    """Into how many parts the mesh that is set cuts a batch; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in AXES)


def constrain_batch(batch: Tree) -> Tree:
    """Inside a jitted function under `jax.set_mesh`: keeps the first axis sharded, others whole.

    Without it XLA may move activations between the batch and the channels in every layer, because
    the weights are sharded over "fsdp" too. Without a mesh, and for a batch that does not divide
    (previews, initialisation), it changes nothing.

    Args:
      batch: arrays [batch, ...].

    Returns:
      The same values.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch
    shards = batch_shards()
    pin = lambda x: x if x.shape[0] % shards else jax.lax.with_sharding_constraint(x, BATCH)
    return jax.tree.map(pin, batch)
