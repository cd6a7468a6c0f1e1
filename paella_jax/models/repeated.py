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

    Returns:
      The last layer's output.
    """
    keys = None if key is None else jax.random.split(key, len(params))
    narrow = lambda leaf: leaf if cast is None or leaf.ndim < 2 else leaf.astype(cast)

    def step(x: Array, given: tuple[Any, Any]) -> tuple[Array, None]:
        own, key = given
        rngs = None if key is None else {"dropout": key}
        return layer.apply({"params": own}, constrain_batch(x), *inputs, rngs=rngs), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)  # a loop's body is not merged with others
    stacked = jax.tree.map(lambda *leaves: jnp.stack([narrow(leaf) for leaf in leaves]), *params)
    return jax.lax.scan(step, x, (stacked, keys))[0]
