"""Forward process on real values: Gaussian noise, cosine schedule (docs/models/wuerstchen.md 5.3).

Noise levels t are float32 in [0, 1], 1 = all noise; any shape of values [batch, ...]. A level's
`alpha_bar` is the fraction of the signal's variance that is left. Everything is float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from paella_jax.typing import Array

LOSS_WEIGHTS = ("none", "p2", "p2_paper", "clean")
MOST_CLEAN_WEIGHT = 100.0  # reached where 1 % of the variance is signal


@dataclass(frozen=True)
class CosineSchedule:
    """The continuous cosine schedule.

    Attributes:
      offset: keeps the slope at t = 0 away from zero (the reference's `s`).
      scaler: bends t first. Above 1: 1 - (1 - t)^scaler, more noise at the same t; below 1:
        t^scaler, likewise.
      minimum: alpha_bar is clipped to [minimum, 1 - minimum]. At t = 1 it would be zero, so that
        the first step would divide by it; at t = 0 the result keeps a trace of noise.

    Raises:
      ValueError: a value outside its range.
    """

    offset: float = 0.008
    scaler: float = 1.0
    minimum: float = 1e-4

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise ValueError(f"schedule offset {self.offset} must be at least 0")
        if self.scaler <= 0:
            raise ValueError(f"schedule scaler {self.scaler} must be above 0 (1 is off)")
        if not 0 < self.minimum < 0.5:
            raise ValueError(f"schedule minimum {self.minimum} must be in (0, 0.5)")

    def alpha_bar(self, t: Array) -> Array:
        """The fraction of the variance that is signal at t, float32 of the shape of t."""
        t = jnp.asarray(t, jnp.float32)
        if self.scaler > 1:
            t = 1.0 - (1.0 - t) ** self.scaler
        elif self.scaler < 1:
            t = t**self.scaler
        angle = lambda level: (level + self.offset) / (1.0 + self.offset) * (math.pi / 2)
        alpha_bar = jnp.square(jnp.cos(angle(t))) / math.cos(angle(0.0)) ** 2
        return jnp.clip(alpha_bar, self.minimum, 1.0 - self.minimum)


def per_sample(values: Array, like: Array) -> Array:
    """A scalar or [batch] reshaped to multiply `like` [batch, ...]."""
    return values if jnp.ndim(values) == 0 else values.reshape((-1,) + (1,) * (like.ndim - 1))


def gaussian_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Unit noise, keys [batch] -> float32 [batch, *shape]; each sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def diffuse(clean: Array, noise: Array, alpha_bar: Array) -> Array:
    """sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise.

    Args:
      clean: float [batch, ...].
      noise: float [batch, ...], unit variance.
      alpha_bar: float32 [batch] or scalar.

    Returns:
      float32 [batch, ...].
    """
    alpha_bar = per_sample(alpha_bar, clean)
    clean, noise = clean.astype(jnp.float32), noise.astype(jnp.float32)
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1.0 - alpha_bar) * noise


def clean_from_noise(noised: Array, noise: Array, alpha_bar: Array) -> Array:
    """Solves `diffuse` for `clean`: noised and noise [batch, ...] -> float32 [batch, ...]."""
    alpha_bar = per_sample(alpha_bar, noised)
    return (noised - jnp.sqrt(1.0 - alpha_bar) * noise) / jnp.sqrt(alpha_bar)


def loss_weight(kind: str, alpha_bar: Array) -> Array:
    """Weight of a sample's loss; the shape of `alpha_bar`.

    Args:
      kind: "none" is 1; "p2" is 1 - alpha_bar, what the released code does; "p2_paper" is
        (1 - alpha_bar) / (1 + alpha_bar), what the Würstchen paper writes; "clean" is
        (1 - alpha_bar) / alpha_bar up to a bound: the squared error of the noise is then that of
        the clean values (Salimans and Ho 2022, section 4).
      alpha_bar: float32.

    Raises:
      ValueError: another kind.
    """
    if kind == "none":
        return jnp.ones_like(alpha_bar)
    if kind == "p2":
        return p2_weight(alpha_bar)
    if kind == "p2_paper":
        return (1.0 - alpha_bar) / (1.0 + alpha_bar)
    if kind == "clean":
        return jnp.minimum((1.0 - alpha_bar) / alpha_bar, MOST_CLEAN_WEIGHT)
    raise ValueError(f"objective.loss_weight must be one of {LOSS_WEIGHTS}, got {kind!r}")


def p2_weight(alpha_bar: Array, k: float = 1.0, gamma: float = 1.0) -> Array:
    """Loss weight (k + signal-to-noise)^-gamma; k = gamma = 1 gives 1 - alpha_bar."""
    return (k + alpha_bar / (1.0 - alpha_bar)) ** -gamma
