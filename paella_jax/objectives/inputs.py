"""What a training objective is given and gives back; one contract for every method."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from paella_jax.noise.generators import dropout_key
from paella_jax.typing import Array, Tree

# In the frozen tree: what encoders made of the empty text, where they ran beforehand.
EMPTY = "empty"


@struct.dataclass
class StepInputs:
    """One (micro-)batch and everything around it.

    Attributes:
      batch: {name: array [batch, ...]}.
      keys: [batch] PRNG keys, one per sample, independent of how the batch is cut or sharded.
      step: int32 scalar, the update being computed.
      model_state: non-trainable state that training updates (batch statistics, code usage).
      frozen: parameters of frozen networks.
      dropout: whether activations are dropped, and statistics are the batch's: not where a loss is
        only looked at.
    """

    batch: dict[str, Array]
    keys: Array
    step: Array
    model_state: Tree
    frozen: Tree
    dropout: bool = struct.field(pytree_node=False, default=True)


# (params, inputs) -> (scalar loss, (metrics, new model_state)); the loss is a mean over samples.
Objective = Callable[[Tree, StepInputs], tuple[Array, tuple[dict[str, Array], Tree]]]


def keys_of_dropout(
    inputs: StepInputs, key: Array, settings: ConfigDict, count: int
) -> list[Array | None]:
    """Keys of what drops activations, the predicted network's last; None where nothing does.

    Args:
      inputs: whose `dropout` says whether anything does.
      key: scalar.
      settings: `config.objective`.
      count: of the keys.
    """
    if not inputs.dropout:
        return [None] * count
    *others, last = jax.random.split(key, count)
    # Older runs lack the field.
    return [*others, dropout_key(last, settings.get("dropout_generator", "threefry"))]


def images_from_batch(batch: dict[str, Array]) -> Array:
    """A batch's uint8 `image` -> float32 [batch, H, W, 3] in [0, 1]."""
    return batch["image"].astype(jnp.float32) / 255.0


def drop_rows(drop: Array, given: Array, empty: Array) -> Array:
    """Puts `empty` [...] in the place of some rows of `given` [batch, ...], in its type."""
    dropped = drop.reshape(-1, *[1] * empty.ndim)
    return jnp.where(dropped, empty[None], given.astype(empty.dtype))
