"""Drawing one class per position from logits, without a second logits-sized array.

On CPU: inverse CDF in two levels (16 times faster than Gumbel noise for 8192 classes, since the
logarithms of the noise are what costs). On accelerators: Gumbel noise, which XLA fuses into one
pass over the logits. Both draw from the same distribution, but not the same tokens
(reference/stack-facts.md 8), so a sampler's result depends on the platform unless it is named.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def _groups(classes: int) -> int:
    """The divisor of `classes` closest to its square root."""
    divisors = [d for d in range(1, classes + 1) if classes % d == 0]
    return min(divisors, key=lambda d: abs(d - math.sqrt(classes)))


def draw_inverse_cdf(key: Array, logits: Array) -> Array:
    """Inverse CDF in two levels: first a group of classes, then the class inside it.

    Args:
      key: one PRNG key.
      logits: [..., classes], any float dtype; computed in float32.

    Returns:
      int32 [...].
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    groups = _groups(classes)
    mass = jnp.exp(logits - logits.max(-1, keepdims=True))
    mass = mass.reshape(*logits.shape[:-1], groups, classes // groups)
    group_ends = jnp.cumsum(mass.sum(-1), -1)
    # `target` lies in [0, total): strict comparison below never picks a class of zero mass.
    target = jax.random.uniform(key, (*logits.shape[:-1], 1)) * group_ends[..., -1:]
    group = jnp.minimum((group_ends <= target).sum(-1, keepdims=True), groups - 1)
    before = jnp.where(
        group > 0, jnp.take_along_axis(group_ends, jnp.maximum(group - 1, 0), -1), 0.0
    )
    inside = jnp.take_along_axis(mass, group[..., None], -2)[..., 0, :]
    class_ends = jnp.cumsum(inside, -1)
    # Rounding may put the target a hair past the group's last class of non-zero mass.
    last = (classes // groups - 1) - jnp.argmax(inside[..., ::-1] > 0, -1, keepdims=True)
    member = jnp.minimum((class_ends + before <= target).sum(-1, keepdims=True), last)
    return (group * (classes // groups) + member)[..., 0].astype(jnp.int32)


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
    return lax.platform_dependent(key, logits, cpu=draw_inverse_cdf, default=draw_gumbel)
