"""What every latent diffusion trains: predict the noise in noised values.

Source: docs/models/wuerstchen.md 5.3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise, loss_weight
from paella_jax.noise.tokens import sample_noise_level, split_keys, uniform_per_sample
from paella_jax.objectives.inputs import Objective, StepInputs
from paella_jax.typing import Array, Tree


def noise_prediction_loss(
    predict: Callable[[Array, Array], Array],
    clean: Array,
    keys: Array,
    schedule: CosineSchedule,
    settings: ConfigDict,
) -> tuple[Array, dict[str, Array]]:
    """Mean over samples of the weighted mean squared error of the noise.

    Args:
      predict: (noised [batch, ...], t [batch]) -> noise.
      clean: float [batch, ...].
      keys: [batch] PRNG keys.
      schedule: the noise schedule.
      settings: `minimum_t` and `stretch` of the noise levels, and `loss_weight`.

    Returns:
      Loss, and the unweighted error as metric.
    """
    level_keys, noise_keys = split_keys(keys)
    t = sample_noise_level(level_keys, settings.minimum_t, settings.stretch)
    alpha_bar = schedule.alpha_bar(t)
    noise = gaussian_noise(noise_keys, clean.shape[1:])
    predicted = predict(diffuse(clean, noise, alpha_bar), t).astype(jnp.float32)
    error = jnp.square(predicted - noise).mean(tuple(range(1, clean.ndim)))
    weight = loss_weight(settings.loss_weight, alpha_bar)
    return (error * weight).mean(), {"noise_mse": error.mean()}


def drop_embeddings(keys: Array, embeddings: Array, fraction: float) -> Array:
    """Sets a fraction of the embeddings [batch, width] to zero, the prior's "no text".

    Every sample's own key decides. The reference decides once per per-process batch; the expected
    fraction is the same.
    """
    return jnp.where((uniform_per_sample(keys) < fraction)[:, None], 0.0, embeddings)


def clip_prior_objective(
    predict: Callable[[Tree, Array, Array, Array], Array],
    schedule: CosineSchedule,
    settings: ConfigDict,
) -> Objective:
    """Builds the objective; its batch holds `text_embedding` and `image_embedding` [batch, width].

    Args:
      predict: (params, noised, t, text_embedding) -> noise.
      schedule: the noise schedule.
      settings: `config.objective` of configs/clip_prior.py.
    """

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        noise_keys, drop_keys = split_keys(inputs.keys)
        text = inputs.batch["text_embedding"].astype(jnp.float32)
        text = drop_embeddings(drop_keys, text, settings.text_drop)
        predict_noise = lambda noised, t: predict(params, noised, t, text)
        clean = inputs.batch["image_embedding"]
        loss, metrics = noise_prediction_loss(predict_noise, clean, noise_keys, schedule, settings)
        return loss, (metrics, inputs.model_state)

    return objective
