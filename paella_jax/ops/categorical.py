"""Drawing one class per position from logits, without a second logits-sized array.

On CPU: inverse CDF in two levels (16 times faster than Gumbel noise for 8192 classes, since the
logarithms of the noise are what costs). On accelerators: Gumbel noise, which XLA fuses into one
pass over the logits. Both draw from the same distribution, but not the same tokens
(docs/jax.md 8), so a sampler's result depends on the platform unless it is named.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array


def _groups(classes: int) -> tuple[int, int]:
    """Group count and group size of about the square root each, with room for every class."""
    divisors = [d for d in range(1, classes + 1) if classes % d == 0]
    root = math.sqrt(classes)
    groups = min(divisors, key=lambda d: abs(d - root))
    if 2 * groups < root:  # a prime number or nearly so: the last group is filled up instead
        groups = math.ceil(root)
    return groups, -(-classes // groups)


def _first_beyond(mass: Array, ends: Array, target: Array) -> Array:
    """First entry of non-zero mass whose running total `ends` exceeds `target`.

    Rounding may leave none, then it is the last entry of non-zero mass. An entry of zero mass is
    never chosen, though its running total may be a hair above that of the entry before it.
    """
    wanted = (mass > 0) & (ends > target)
    last = mass.shape[-1] - 1 - jnp.argmax(mass[..., ::-1] > 0, -1, keepdims=True)
    first = jnp.argmax(wanted, -1, keepdims=True)
    return jnp.where(jnp.take_along_axis(wanted, first, -1), first, last)


def draw_inverse_cdf(key: Array, logits: Array) -> Array:
    """Inverse CDF in two levels: first a group of classes, then the class inside it.

    Args:
      key: one PRNG key.
      logits: [..., classes], any float dtype; computed in float32. At least one must be finite.

    Returns:
      int32 [...].
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    groups, size = _groups(classes)
    mass = jnp.exp(logits - logits.max(-1, keepdims=True))
    filled = [(0, 0)] * (logits.ndim - 1) + [(0, groups * size - classes)]
    mass = jnp.pad(mass, filled).reshape(*logits.shape[:-1], groups, size)
    group_mass = mass.sum(-1)
    group_ends = jnp.cumsum(group_mass, -1)
    target = jax.random.uniform(key, (*logits.shape[:-1], 1)) * group_ends[..., -1:]
    group = _first_beyond(group_mass, group_ends, target)
    before = jnp.where(
        group > 0, jnp.take_along_axis(group_ends, jnp.maximum(group - 1, 0), -1), 0.0
    )
    inside = jnp.take_along_axis(mass, group[..., None], -2)[..., 0, :]
    member = _first_beyond(inside, jnp.cumsum(inside, -1) + before, target)
    return (group * size + member)[..., 0].astype(jnp.int32)


def draw_gumbel(key: Array, logits: Array) -> Array:
    """Gumbel-argmax draw; `logits` [..., classes] -> int32 [...]."""
    # bfloat16 noise is measurably biased, hence the cast.
    return jax.random.categorical(key, logits.astype(jnp.float32)).astype(jnp.int32)


def draw_categorical(key: Array, logits: Array, *, implementation: str = "auto") -> Array:
    """One draw from softmax(logits) per position.

    Args:
      key: one PRNG key.
      logits: [..., classes].
      implementation: "auto" (by platform), "inverse_cdf" or "gumbel".

    Returns:
      int32 [...].
    """
    if implementation == "inverse_cdf":
        return draw_inverse_cdf(key, logits)
    if implementation == "gumbel":
        return draw_gumbel(key, logits)
    if implementation != "auto":
        raise ValueError(f"unknown categorical draw {implementation!r}")
    return lax.platform_dependent(key, logits, cpu=draw_inverse_cdf, default=draw_gumbel)
