"""Forward process on tokens: replace a fraction of them (docs/models/paella.md 2.6).

Every function takes one PRNG key per sample, so a sample's noise depends on its own key only: not
on the batch around it, the number of devices, or how a batch is cut into micro-batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from paella_jax.typing import Array


def sample_keys(key: Array, index: Array) -> Array:
    """One key per sample: `key` folded with each sample's index. index int [batch] -> [batch]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def split_keys(keys: Array, count: int = 2) -> Array:
    """`count` keys from each sample's: keys [batch] -> [count, batch]."""
    return jax.vmap(lambda key: jax.random.split(key, count))(keys).T


def uniform_per_sample(keys: Array) -> Array:
    """U[0, 1) from each sample's own key: keys [batch] -> float32 [batch]."""
    return jax.vmap(lambda key: jax.random.uniform(key))(keys)


def random_tokens(keys: Array, grid: tuple[int, ...], codebook_size: int) -> Array:
    """Uniform tokens, keys [batch] -> int32 [batch, h, w]."""
    draw = lambda key: jax.random.randint(key, grid, 0, codebook_size, jnp.int32)
    return jax.vmap(draw)(keys)


def uniform_map(keys: Array, grid: tuple[int, ...]) -> Array:
    """U[0, 1) per position, keys [batch] -> float32 [batch, h, w]."""
    return jax.vmap(lambda key: jax.random.uniform(key, grid))(keys)


def replace_tokens(
    tokens: Array, replacement: Array, uniform: Array, t: Array | float
) -> tuple[Array, Array]:
    """Replaces the positions where `uniform` <= t (note: not <).

    Args:
      tokens: int [batch, h, w].
      replacement: int [batch, h, w].
      uniform: float [batch, h, w] in [0, 1).
      t: float [batch] or scalar.

    Returns:
      The noised tokens and the noise mask (bool, True where replaced), both [batch, h, w].
    """
    noise_mask = uniform <= jnp.reshape(t, (-1, 1, 1))
    return jnp.where(noise_mask, replacement, tokens), noise_mask


def add_noise(keys: Array, tokens: Array, t: Array, codebook_size: int) -> tuple[Array, Array]:
    """Replaces a fraction `t` of the tokens by uniform random ones.

    Args:
      keys: [batch] PRNG keys.
      tokens: int32 [batch, h, w].
      t: float32 [batch] in [0, 1].
      codebook_size: the vocabulary; a replaced token can by chance equal the original.

    Returns:
      The noised tokens and the noise mask, as `replace_tokens` gives them.
    """
    _, *grid = tokens.shape
    mask_keys, token_keys = split_keys(keys)
    replacement = random_tokens(token_keys, tuple(grid), codebook_size)
    return replace_tokens(tokens, replacement, uniform_map(mask_keys, tuple(grid)), t)


def sample_noise_level(keys: Array, minimum: float = 0.001, stretch: float = 1.0) -> Array:
    """t = (1 - U) stretch + minimum, clipped to [minimum, 1]; keys [batch] -> float32 [batch].

    A stretch above 1 puts a part of the samples at t = 1 (Würstchen: 1.08, 7.5 %).
    """
    return jnp.clip((1.0 - uniform_per_sample(keys)) * stretch + minimum, minimum, 1.0)


def loss_weight(noise_mask: Array, t: Array, minimum: float = 0.3) -> Array:
    """1 where noised; minimum + (1 - minimum) t elsewhere. [batch, h, w] float32."""
    kept = 1.0 - noise_mask.astype(jnp.float32)
    return 1.0 - kept * (1.0 - jnp.reshape(t, (-1, 1, 1))) * (1.0 - minimum)
