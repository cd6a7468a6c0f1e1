"""What XLA:CPU may not join."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array


@jax.custom_vjp
def apart(x: Array) -> Array:
    """x itself. On CPU what makes it and what reads it are compiled apart, elsewhere as ever.

    XLA:CPU gives a reduction to YNNPACK together with its neighbours, products and convolutions
    among them, which are then slower than all by themselves (docs/speed.md 5). Its optimisation
    barrier is gone before that choice is made; an operator of three arguments is none that YNNPACK
    takes, and costs nothing in the loop that it becomes a part of.
    """
    limit = jnp.asarray(jnp.inf, x.dtype)
    return lax.platform_dependent(x, cpu=lambda x: lax.clamp(-limit, x, limit), default=lambda x: x)


apart.defvjp(lambda x: (apart(x), None), lambda _, grad: (apart(grad),))
