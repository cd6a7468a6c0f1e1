"""What every latent diffusion trains: predict the noise in noised values (wuerstchen.md 5.3)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.noise.gaussian import CosineSchedule, diffuse, gaussian_noise, loss_weight
from paella_jax.noise.tokens import sample_noise_level

Array = jax.Array


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
      schedule: of the noise.
      settings: minimum_t and stretch of the noise levels, loss_weight.

    Returns:
      Loss, and the unweighted error as metric.
    """
    level_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key))(keys).T
    t = sample_noise_level(level_keys, settings.minimum_t, settings.stretch)
    alpha_bar = schedule.alpha_bar(t)
    noise = gaussian_noise(noise_keys, clean.shape[1:])
    predicted = predict(diffuse(clean, noise, alpha_bar), t).astype(jnp.float32)
    error = jnp.square(predicted - noise).mean(tuple(range(1, clean.ndim)))
    weight = loss_weight(settings.loss_weight, alpha_bar)
    return (error * weight).mean(), {"noise_mse": error.mean()}
