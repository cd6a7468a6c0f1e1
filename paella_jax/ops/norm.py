"""Layer norm without scale and bias, with a gradient that keeps the input and two numbers a row."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.ops.fusion import apart
from paella_jax.typing import Array


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Layer norm over the last axis without scale and bias, biased variance, in float32.

    Args:
      x: [..., C].
      epsilon: added to the variance.

    Returns:
      [..., C] in the type of `x`.
    """
    return _forward(x, epsilon)[0]


def _forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    # A product that reads this would be pulled into the norm's fusion, and run at half its speed.
    return apart((centred * inverse).astype(x.dtype)), (x, mean, inverse)


def _backward(epsilon: float, saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array]:
    x, mean, inverse = saved
    grad = grad.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    along = (grad * normed).mean(-1, keepdims=True)
    grad = inverse * (grad - grad.mean(-1, keepdims=True) - normed * along)
    return (apart(grad.astype(x.dtype)),)


layer_norm.defvjp(_forward, _backward)
