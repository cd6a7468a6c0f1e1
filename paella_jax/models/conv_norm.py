"""The layer that frozen classifiers are made of: a convolution, its BatchNorm and a rectifier.

For inference alone: the statistics are those that the weights came with, and they are multiplied
into the kernel, which costs nothing beside the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.typing import Array

Padding = str | Sequence[tuple[int, int]]


class FrozenConvNorm(nn.Module):
    """Convolution without bias, BatchNorm by stored statistics, then `activation`.

    Attributes:
      features: output channels; of a depthwise layer those of the input.
      kernel_size: rows and columns.
      stride: of both axes.
      padding: "VALID", "SAME" (uneven at stride 2, the larger part behind), or pixels.
      depthwise: every channel by itself.
      activation: behind the norm.
      epsilon: added to the variance.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Padding = "SAME"
    depthwise: bool = False
    activation: Callable[[Array], Array] = jax.nn.relu
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, h, w, C] -> [batch, h', w', features]."""
        inputs = 1 if self.depthwise else x.shape[-1]
        # All weights come from a file. Zeros are quick to trace, and there are a hundred layers.
        zeros, vector = nn.initializers.zeros, (self.features,)
        kernel = self.param("kernel", zeros, (*self.kernel_size, inputs, self.features))
        scale = self.param("scale", zeros, vector)
        bias = self.param("bias", zeros, vector)
        mean = self.variable("batch_stats", "mean", jnp.zeros, vector).value
        variance = self.variable("batch_stats", "var", jnp.ones, vector).value
        gain = scale * lax.rsqrt(variance + self.epsilon)
        kernel = kernel * gain.reshape(1, 1, 1, -1)
        shift = (bias - mean * gain).reshape(1, 1, 1, -1)
        return self.activation(self._convolve(x, kernel) + shift)

    def _convolve(self, x: Array, kernel: Array) -> Array:
        strides = (self.stride, self.stride)
        pads = self.padding
        if isinstance(pads, str):
            sizes = x.shape[1:3]
            pads = lax.padtype_to_pads(sizes, self.kernel_size, strides, pads)
        if not self.depthwise:
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=numbers)
        # XLA's grouped convolution is many times slower on CPU than a sum of shifted images.
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        rows, columns = self.kernel_size
        span = [
            (side - size) // self.stride * self.stride + 1
            for side, size in zip(x.shape[1:3], self.kernel_size, strict=True)
        ]
        total = jnp.zeros((), x.dtype)
        for i in range(rows):
            for j in range(columns):
                piece = x[:, i : i + span[0] : self.stride, j : j + span[1] : self.stride]
                total = total + piece * kernel[i, j].reshape(1, 1, 1, -1)
        return total
