"""Separable resizing of maps as two matrix products.

`jax.image.resize` contracts both axes in one float32 einsum that XLA cannot compile for a GPU it
has no access to; two products with constant matrices can be compiled anywhere.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.typing import Array

RADIUS = {"bicubic": 2.0, "bilinear": 1.0}  # input pixels to each side that a kernel reads


def resize_antialiased(x: Array, height: int, width: int, method: str = "bicubic") -> Array:
    """torchvision's antialiased resize (half-pixel rule; bicubic with a = -0.5), in float32.

    Args:
      x: float [batch, h, w, channels].
      height: the result's height, at least 1.
      width: the result's width, at least 1.
      method: "bicubic" or "bilinear".

    Returns:
      float32 [batch, height, width, channels].
    """
    rows = antialias_matrix(x.shape[1], height, method)
    return apply_matrices(x, rows, antialias_matrix(x.shape[2], width, method))


def apply_matrices(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """x [batch, h, w, C], rows [H, h], columns [W, w] -> [batch, H, W, C].

    In float32, whatever the default matmul precision.
    """
    down, across = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("yh,bhwc->bywc", down, x.astype(jnp.float32), precision=exact)
    return jnp.einsum("xw,bywc->byxc", across, x, precision=exact)


@lru_cache(maxsize=256)
def antialias_matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
    """The resize of one axis as a read-only float64 matrix [size_out, size_in]; rows sum to 1."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)  # when shrinking, the kernel widens and low-passes
    centre = scale * (np.arange(size_out)[:, None] + 0.5) - 0.5
    distance = np.abs(np.arange(size_in)[None, :] - centre) / stretch
    near = keys_cubic(distance) if method == "bicubic" else np.maximum(1.0 - distance, 0.0)
    weights = np.where(distance < RADIUS[method], near, 0.0)
    matrix = weights / weights.sum(1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def keys_cubic(distance: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic kernel at distances from the centre, in input pixels."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
