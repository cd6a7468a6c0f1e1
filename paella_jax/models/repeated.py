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
from paella_jax.typing import Array


def loop_over_layers(
    module: nn.Module,
    layer: nn.Module,
    names: Sequence[str],
    x: Array,
    *inputs: Any,
    remat: bool = False,
    dropout: bool = False,
) -> Array:
    """x through `layer` once for each name, with the parameters that `module` has under it.

    Args:
      module: bound, and not initialising: that makes the layers one by one.
      layer: unbound; `x -> x`, of one shape.
      names: of its parameters in `module`, in the order of use.
      x: [batch, ...].
      *inputs: what the layer reads besides, the same every time.
      remat: recompute each layer in the backward pass.
      dropout: give every layer a key; the numbers drawn are others than those of single layers.

    Returns:
      The last layer's output.
    """
    params = [module.variables["params"][name] for name in names]
    keys = jax.random.split(module.make_rng("dropout"), len(names)) if dropout else None

    def step(x: Array, given: tuple[Any, Any]) -> tuple[Array, None]:
        own, key = given
        rngs = None if key is None else {"dropout": key}
        return layer.apply({"params": own}, constrain_batch(x), *inputs, rngs=rngs), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)  # a loop's body is not merged with others
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(step, x, (stacked, keys))[0]
