"""What is done to every position by itself, done strip by strip, so that it stays in the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array

POSITIONS = 1024  # of a strip: few enough for the cache, enough for a matrix product at full speed

Function = Callable[..., Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_strips(function: Function, x: Array, *inputs: Any) -> Array:
    """`function(x, *inputs)`; on CPU and without a gradient, of one strip of rows at a time.

    An MLP of a 128 x 128 map writes and reads 50 MB of hidden units for each image otherwise, which
    takes half as long as its products (docs/speed.md 5). The batch stays whole: a sharded one stays
    sharded.

    Args:
      function: [batch, rows, width, C] and the inputs -> the same shape, each position by itself.
        It closes over no arrays.
      x: [batch, height, width, C].
      *inputs: pytrees of arrays, the same for every position.

    Returns:
      [batch, height, width, C].
    """
    rows = _rows(x.shape)
    if rows == x.shape[1]:
        return function(x, *inputs)
    return lax.platform_dependent(
        x, *inputs, cpu=partial(_one_by_one, function, rows), default=function
    )


def _one_by_one(function: Function, rows: int, x: Array, *inputs: Any) -> Array:
    cut = lambda start: lax.dynamic_slice_in_dim(x, start, rows, axis=1)
    strips = lax.map(
        lambda start: function(cut(start), *inputs), jnp.arange(0, x.shape[1], rows, jnp.int32)
    )
    return jnp.moveaxis(strips, 0, 1).reshape(x.shape)


def _rows(shape: tuple[int, ...]) -> int:
    """Rows of a strip: the most that divide the height and hold at most `POSITIONS`, at least 1."""
    batch, height, width, _ = shape
    fitting = [
        n for n in range(1, height + 1) if height % n == 0 and n * batch * width <= POSITIONS
    ]
    return max(fitting, default=1)


def _forward(
    function: Function, x: Array, *inputs: Any
) -> tuple[Array, Callable[..., tuple[Any, ...]]]:
    # Whole: a loop's way back would keep its strips stacked and add up the weights' gradients.
    return jax.vjp(function, x, *inputs)


def _backward(
    function: Function, back: Callable[..., tuple[Any, ...]], grad: Array
) -> tuple[Any, ...]:
    return back(grad)


in_strips.defvjp(_forward, _backward)
