"""Training step of the direct decoder: squared error of the image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from paella_jax.objectives.inputs import Objective, StepInputs, images_from_batch
from paella_jax.typing import Array, Tree


def direct_decoder_objective(
    decode: Callable[[Tree, Array, int, int], Array], compress: Callable[[Tree, Array], Array]
) -> Objective:
    """Builds the objective.

    Args:
      decode: (params, latents, height, width) -> images.
      compress: (frozen, images) -> latents.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        images = images_from_batch(inputs.batch)
        latents = jax.lax.stop_gradient(compress(inputs.frozen, images))
        error = jnp.square(decode(params, latents, *images.shape[1:3]) - images).mean()
        return error, ({"mse": error}, inputs.model_state)

    return objective
