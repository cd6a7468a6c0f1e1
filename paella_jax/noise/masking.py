"""Forward process of masked transformers: tokens become the mask id (docs/models/muse.md 1.5, 2.8).

Every random function takes one PRNG key per sample, as in noise/tokens.py.
"""

from __future__ import annotations

import jax.numpy as jnp

from paella_jax.noise.tokens import uniform_map, uniform_per_sample
from paella_jax.typing import Array

MASK_DENSITIES = ("cosine", "uniform")


def mask_ratio(uniform: Array, density: str = "cosine") -> Array:
    """The fraction of tokens to mask, for uniform draws.

    Args:
      uniform: float32 in [0, 1), any shape.
      density: "cosine" is cos(pi u / 2), whose density is MUSE's arccos density
        (2 / pi) / sqrt(1 - r^2), mean 0.64; "uniform" is 1 - u.

    Returns:
      float32 in (0, 1], the shape of `uniform`.

    Raises:
      ValueError: another density.
    """
    if density == "cosine":
        return jnp.cos(uniform * (jnp.pi / 2))
    if density == "uniform":
        return 1.0 - uniform
    raise ValueError(f"mask density must be one of {MASK_DENSITIES}, got {density!r}")


def sample_mask_ratio(keys: Array, density: str = "cosine", minimum: float = 0.0) -> Array:
    """One ratio per sample, at least `minimum`; keys [batch] -> float32 [batch]."""
    if not 0.0 <= minimum <= 1.0:
        raise ValueError(f"minimum mask ratio {minimum} must be in [0, 1]")
    return jnp.maximum(mask_ratio(uniform_per_sample(keys), density), minimum)


def num_masked(ratio: Array, positions: int) -> Array:
    """Tokens to mask of `positions`: rounded half to even, at least 1. [batch] -> int32 [batch]."""
    return jnp.maximum(1, jnp.round(positions * ratio)).astype(jnp.int32)


def exact_mask(uniform: Array, count: Array) -> Array:
    """Masks exactly `count` positions of each sample: those of the lowest `uniform`.

    Args:
      uniform: float32 [batch, h, w].
      count: int [batch].

    Returns:
      bool [batch, h, w], True where masked.
    """
    ranks = jnp.argsort(jnp.argsort(uniform.reshape(uniform.shape[0], -1), axis=-1), axis=-1)
    return (ranks < count[:, None]).reshape(uniform.shape)


def apply_mask(tokens: Array, mask: Array, mask_token: int) -> Array:
    """Tokens [batch, h, w] with the mask id where `mask` is True."""
    return jnp.where(mask, jnp.asarray(mask_token, tokens.dtype), tokens)


def mask_randomly(
    tokens: Array, uniform: Array, ratio: Array | float, mask_token: int
) -> tuple[Array, Array]:
    """Masks where `uniform` < ratio (note: not <=): a fraction on average, not an exact count.

    Args:
      tokens: int [batch, h, w].
      uniform: float [batch, h, w] in [0, 1).
      ratio: float [batch] or scalar.
      mask_token: the mask's id.

    Returns:
      The masked tokens and the mask (bool), both [batch, h, w].
    """
    mask = uniform < jnp.reshape(ratio, (-1, 1, 1))
    return apply_mask(tokens, mask, mask_token), mask


def add_mask(keys: Array, tokens: Array, ratio: Array, mask_token: int) -> tuple[Array, Array]:
    """Masks an exact number of random tokens, as training does.

    Args:
      keys: [batch] PRNG keys.
      tokens: int [batch, h, w].
      ratio: float32 [batch] in [0, 1].
      mask_token: the mask's id.

    Returns:
      The masked tokens and the mask (bool), both [batch, h, w].
    """
    _, height, width = tokens.shape
    mask = exact_mask(uniform_map(keys, (height, width)), num_masked(ratio, height * width))
    return apply_mask(tokens, mask, mask_token), mask
