"""A 3x3 convolution of a map that was enlarged twofold by repeating its positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import lax

from paella_jax.typing import Array


def upsampled_conv(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """The convolution without making the large map: 4 of 9 products, and a quarter of the input.

    Of two neighbouring results of a row, the left one sees position i - 1 once and i twice, the
    right one i twice and i + 1 once. So each of the four results of a position is a 2x2 convolution
    of the small map, with sums of the kernel's taps. Sums are rounded otherwise than in a
    convolution of the large map, as always between two orders of adding.

    Args:
      x: [batch, height, width, C].
      kernel: [3, 3, C, D]; zero padding of one position on every side of the large map.
      *_: what `flax.linen.Conv` gives besides, to use this in place of its convolution.
      **__: likewise.

    Returns:
      [batch, 2 * height, 2 * width, D].
    """
    rows = [_taps(kernel, 0, side) for side in (0, 1)]
    parts = [
        [_conv(x, _taps(row, 1, right), (side, right)) for right in (0, 1)]
        for side, row in enumerate(rows)
    ]
    stacked = jnp.stack([jnp.stack(row) for row in parts])
    return rearrange(stacked, "p q b h w c -> b (h p) (w q) c")


def _taps(kernel: Array, axis: int, side: int) -> Array:
    """Three taps of an axis as two: the outer one, and the sum of those that see one position."""
    take = partial(lax.slice_in_dim, kernel, axis=axis)
    first = take(0, 1 + side).sum(axis, keepdims=True)
    return jnp.concatenate([first, take(1 + side, 3).sum(axis, keepdims=True)], axis)


def _conv(x: Array, kernel: Array, sides: tuple[int, int]) -> Array:
    pad = [(1 - side, side) for side in sides]
    form = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=form)
