"""The training state: one pytree that a checkpoint holds and a train step maps to the next."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding

from paella_jax.typing import Array, Tree


@struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32 scalar, updates done.
      params: trainable parameters, float32.
      ema_params: their moving average, or an empty dict where the config has none.
      opt_state: optimiser state.
      model_state: batch statistics and the like.
    """

    step: Array
    params: Tree
    ema_params: Tree
    opt_state: Tree
    model_state: Tree

    @property
    def eval_params(self) -> Tree:
        """The parameters to sample and evaluate with."""
        return self.ema_params if self.ema_params else self.params


def mesh_of(state: TrainState) -> Mesh:
    """The mesh that a state in training lies on."""
    sharding = state.step.sharding
    assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def create_state(
    params: Tree, model_state: Tree, optimizer: optax.GradientTransformation, use_ema: bool
) -> TrainState:
    """The state before the first update."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params) if use_ema else {},
        opt_state=optimizer.init(params),
        model_state=model_state,
    )
