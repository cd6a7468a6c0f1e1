"""What a sampler's steps have in common, computed once before them.

A step changes the image and the noise level; text, guide and weights stay. So keys and values of
the text, and whatever else depends on neither, need computing once. A layer keeps such values in a
collection of variables of its own: `prepare` fills it, and a network that is given it reads them.
XLA finds the same by itself on CPU, but not for GPUs and TPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from paella_jax.typing import Tree

COLLECTION = "prepared"


def prepared(module: nn.Module, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, or what was kept of it under a name of the module's own.

    Args:
      module: the layer that is running.
      name: of the value.
      make: computes it, of parameters and conditions alone.
    """
    if module.has_variable(COLLECTION, name):
        return module.get_variable(COLLECTION, name)
    value = make()
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        module.put_variable(COLLECTION, name, value)
    return value


def prepare(apply: Callable[..., Any], params: Tree, *inputs: Any) -> Tree:
    """The variables of a network with everything that its steps have in common.

    Under jit only what is kept is computed: the prediction is thrown away.

    Args:
      apply: of the network, (variables, *inputs, mutable) -> (prediction, collections).
      params: its parameters.
      *inputs: as in a step; of what changes only shapes and types are read.

    Returns:
      To be given to `apply` instead of `{"params": params}`.
    """
    _, kept = apply({"params": params}, *inputs, mutable=[COLLECTION])
    return {"params": params, **kept}
