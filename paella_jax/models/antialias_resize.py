"""The bicubic resize Stage B was trained with (docs/models/wuerstchen.md 4.3).

PyTorch's bicubic with antialiasing and `align_corners=True` aligns no corners: it is the
half-pixel rule with the scale (in - 1) / (out - 1). No other library's resize gives these numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from paella_jax.ops.resize import apply_matrices, keys_cubic
from paella_jax.typing import Array


@lru_cache(maxsize=256)
def resize_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The resize of one axis as a read-only float64 matrix [size_out, size_in]; rows sum to 1."""
    scale = (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
    stretch = max(scale, 1.0)  # when shrinking, the kernel widens and low-passes
    support = 2.0 * stretch
    centre = scale * (np.arange(size_out)[:, None] + 0.5)
    taps = np.arange(size_in)[None, :]
    first = np.maximum(np.trunc(centre - support + 0.5), 0)
    last = np.minimum(np.trunc(centre + support + 0.5), size_in)
    weights = keys_cubic((taps - centre + 0.5) / stretch)
    weights = np.where((taps >= first) & (taps < last), weights, 0.0)
    matrix = weights / weights.sum(1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def antialias_resize(x: Array, height: int, width: int) -> Array:
    """Resizes a map in float32, whatever the default matmul precision.

    Args:
      x: float [batch, h, w, channels].
      height: the result's height, at least 1.
      width: the result's width, at least 1.

    Returns:
      float32 [batch, height, width, channels].
    """
    rows, columns = resize_matrix(x.shape[1], height), resize_matrix(x.shape[2], width)
    return apply_matrices(x, rows, columns)
