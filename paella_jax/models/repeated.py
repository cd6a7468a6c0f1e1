"""Equal layers as one loop, whose parameters keep their own names.

Compilers take as long for a loop of 48 layers as for one. Inside the program the layers' parameters
are stacked (a copy of them); in checkpoints they stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from paella_jax.models.prepared import COLLECTION, prepared
from paella_jax.ops.batch_axis import constrain_batch
from paella_jax.typing import Array, Tree


def loop_over_layers(
    layer: nn.Module,
    params: Sequence[Tree],
    x: Array,
    *inputs: Any,
    key: Array | None = None,
    remat: bool = False,
    cast: Any = None,
    keep: tuple[nn.Module, str] | None = None,
) -> Array:
    """x through `layer` once for each tree of parameters.

    Args:
      layer: unbound; `x -> x`, of one shape.
      params: of each layer, in the order of use; a module that initialises makes them one by one.
      x: [batch, ...].
      *inputs: what the layer reads besides, the same every time.
      key: of the dropout; the numbers drawn are others than those of single layers.
      remat: recompute each layer in the backward pass.
      cast: type to stack matrices in, where nothing is trained and they are used in it anyway.
      keep: the calling module and a name of its own, under which the stacked parameters and what
        the layers keep are prepared (models/prepared.py); None prepares nothing.

    Returns:
      The last layer's output.
    """
    keys = None if key is None else jax.random.split(key, len(params))
    narrow = lambda leaf: leaf if cast is None or leaf.ndim < 2 else leaf.astype(cast)
    stack = lambda: jax.tree.map(lambda *own: jnp.stack([narrow(leaf) for leaf in own]), *params)
    if keep is None:
        return _scan(layer, x, inputs, (stack(), keys, {}), remat)[0]
    module, name = keep
    stacked = prepared(module, f"{name}_stacked", stack)
    if not module.is_mutable_collection(COLLECTION):
        kept = module.get_variable(COLLECTION, f"{name}_kept", {})
        return _scan(layer, x, inputs, (stacked, keys, kept), remat)[0]
    x, kept = _scan(layer, x, inputs, (stacked, keys, {}), remat, mutable=[COLLECTION])
    module.put_variable(COLLECTION, f"{name}_kept", kept.get(COLLECTION, {}))
    return x


def _scan(
    layer: nn.Module, x: Array, inputs: tuple[Any, ...], stacked: Tree, remat: bool, **options: Any
) -> tuple[Array, Any]:
    """The loop over stacked (parameters, keys, what was kept): its end, and what is mutable."""

    def step(x: Array, given: tuple[Any, Any, Any]) -> tuple[Array, Any]:
        own, key, kept = given
        variables = {"params": own, COLLECTION: kept} if kept else {"params": own}
        rngs = None if key is None else {"dropout": key}
        out = layer.apply(variables, constrain_batch(x), *inputs, rngs=rngs, **options)
        return out if options else (out, None)

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)  # a loop's body is not merged with others
    return jax.lax.scan(step, x, stacked)
