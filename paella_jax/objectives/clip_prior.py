"""The CLIP prior's training step: noise image embeddings, predict the noise (paella.md 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.noise.gaussian import CosineSchedule
from paella_jax.objectives.inputs import Objective, StepInputs
from paella_jax.objectives.noise_prediction import noise_prediction_loss

Array = jax.Array
Tree = Any


def drop_embeddings(keys: Array, embeddings: Array, share: float) -> Array:
    """Sets a share of the embeddings [batch, width] to zero, the prior's "no text".

    Per sample, by its own key. The reference decides once per per-process batch; the expected
    share is the same.
    """
    drop = jax.vmap(lambda key: jax.random.uniform(key) < share)(keys)[:, None]
    return jnp.where(drop, 0.0, embeddings)


def clip_prior_objective(
    predict: Callable[[Tree, Array, Array, Array], Array],
    schedule: CosineSchedule,
    settings: ConfigDict,
) -> Objective:
    """Builds the objective; its batch holds `text_embedding` and `image_embedding` [batch, width].

    Args:
      predict: (params, noised, t, text_embedding) -> noise.
      schedule: of the noise.
      settings: `config.objective` of configs/clip_prior.py.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        noise_keys, drop_keys = jax.vmap(lambda key: jax.random.split(key))(inputs.keys).T
        text = inputs.batch["text_embedding"].astype(jnp.float32)
        text = drop_embeddings(drop_keys, text, settings.text_drop)
        predict_noise = lambda noised, t: predict(params, noised, t, text)
        clean = inputs.batch["image_embedding"]
        loss, metrics = noise_prediction_loss(predict_noise, clean, noise_keys, schedule, settings)
        return loss, (metrics, inputs.model_state)

    return objective
