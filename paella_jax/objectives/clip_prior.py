"""The CLIP prior's training step: noise image embeddings, predict the noise (paella.md 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise, p2_weight
from paella_jax.noise.tokens import sample_noise_level
from paella_jax.objectives.inputs import Objective, StepInputs

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
        split = jax.vmap(lambda key: jax.random.split(key, 3))(inputs.keys)
        level_keys, noise_keys, drop_keys = split.T
        clean = inputs.batch["image_embedding"].astype(jnp.float32)
        text = inputs.batch["text_embedding"].astype(jnp.float32)
        text = drop_embeddings(drop_keys, text, settings.text_drop)
        t = sample_noise_level(level_keys, settings.minimum_t)
        alpha_bar = schedule.alpha_bar(t)
        noise = gaussian_noise(noise_keys, clean.shape[1:])
        predicted = predict(params, diffuse(clean, noise, alpha_bar), t, text)
        error = jnp.square(predicted.astype(jnp.float32) - noise).mean(-1)
        weight = p2_weight(alpha_bar) if settings.p2_weight else jnp.ones_like(t)
        metrics = {"noise_mse": error.mean()}
        return (error * weight).mean(), (metrics, inputs.model_state)

    return objective
