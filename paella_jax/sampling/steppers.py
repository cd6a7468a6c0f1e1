"""Single steps from one noise level to the next: DDPM, DDIM, DPM-Solver++.

Sources: docs/models/wuerstchen.md 5.3; Lu et al. 2022, Algorithm 2.
"""

from __future__ import annotations

import jax.numpy as jnp

from paella_jax.noise.gaussian import clean_from_noise, diffuse, per_sample
from paella_jax.typing import Array

FEW_STEPS = 15  # below this DPM-Solver++ ends with a first-order step


def ddpm_step(
    x: Array, noise: Array, fresh: Array, alpha_bar: Array, alpha_bar_next: Array, last: Array
) -> Array:
    """One ancestral step; x0 is not clipped.

    Args:
      x: float32 [batch, ...] at the current level.
      noise: the predicted noise in it.
      fresh: new unit noise.
      alpha_bar: float32 [batch] or scalar, of the current level.
      alpha_bar_next: float32 [batch] or scalar, of the next level.
      last: bool [batch] or scalar, True where the next level is 0: nothing fresh is added.

    Returns:
      float32 [batch, ...] at the next level.
    """
    current, following = per_sample(alpha_bar, x), per_sample(alpha_bar_next, x)
    alpha = current / following
    mean = jnp.sqrt(1.0 / alpha) * (x - (1.0 - alpha) * noise / jnp.sqrt(1.0 - current))
    deviation = jnp.sqrt((1.0 - alpha) * (1.0 - following) / (1.0 - current))
    return mean + jnp.where(per_sample(last, x), 0.0, deviation) * fresh


def ddim_step(x: Array, noise: Array, alpha_bar: Array, alpha_bar_next: Array) -> Array:
    """One deterministic step; arguments as in `ddpm_step`."""
    return diffuse(clean_from_noise(x, noise, alpha_bar), noise, alpha_bar_next)


def dpm_step(
    x: Array,
    clean: Array,
    previous: Array,
    correction: Array,
    alpha_bar: Array,
    alpha_bar_next: Array,
) -> Array:
    """One step of DPM-Solver++(2M): deterministic, second order, for few predictions.

    The multistep solver on predictions of the clean values (Lu et al. 2022, Algorithm 2). With
    signal alpha = sqrt(alpha_bar), noise sigma = sqrt(1 - alpha_bar) and
    lambda = log(alpha / sigma), a step of h in lambda is
    x' = sigma'/sigma x + alpha' (1 - exp(-h)) D, where D continues the line through the last two
    predictions to the middle of the step.

    Args:
      x: float32 [batch, ...] at the current level.
      clean: the clean values predicted from it.
      previous: those predicted in the step before.
      correction: weight of their difference, see `dpm_corrections`; 0 makes the step first order,
        which is DDIM's.
      alpha_bar: float32 [batch] or scalar, of the current level.
      alpha_bar_next: float32 [batch] or scalar, of the next level.

    Returns:
      float32 [batch, ...] at the next level.
    """
    current, following = per_sample(alpha_bar, x), per_sample(alpha_bar_next, x)
    towards = clean + per_sample(correction, x) * (clean - previous)
    kept = jnp.sqrt((1.0 - following) / (1.0 - current))
    # alpha' (1 - exp(-h)), as alpha' exp(-h) is kept * alpha.
    gained = jnp.sqrt(following) - kept * jnp.sqrt(current)
    return kept * x + gained * towards


def dpm_corrections(alpha_bar: Array, count: Array | int | None = None) -> Array:
    """What `dpm_step` weighs the change of the prediction with: h / (2 h of the step before).

    Zero, which is first order, in the first step, in the last of fewer than `FEW_STEPS`, and where
    the clipped schedule made the step before empty.

    Args:
      alpha_bar: float32 [steps + 1], of every time point.
      count: how many of the steps are run; None is all of them.

    Returns:
      float32 [steps].
    """
    half_log_ratio = 0.5 * jnp.log(alpha_bar / (1.0 - alpha_bar))
    h = jnp.diff(half_log_ratio)
    steps = h.shape[0] if count is None else count
    before = jnp.concatenate([jnp.zeros(1), h[:-1]])
    ratio = jnp.where(before > 0, 0.5 * h / jnp.where(before > 0, before, 1.0), 0.0)
    ends_in_first_order = (jnp.arange(h.shape[0]) == steps - 1) & (steps < FEW_STEPS)
    return jnp.where(ends_in_first_order, 0.0, ratio)
