"""A small image encoder for runs that train one along: convolutions that shrink, then one layer.

A transformer that is trained from scratch has to learn to look at places before its class token
says anything; here every place has its own weights in the last layer from the first step on
(docs/results.md 3 compares the two).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from paella_jax.models.layers import Dense, gelu, layer_norm
from paella_jax.ops.linear import add_bias, strided_conv
from paella_jax.typing import Array

STRIDES = (4, 2, 2)


class Embedded(NamedTuple):
    """What the tower computes: `embedding` float32 [batch, projection], one vector per image."""

    embedding: Array


class ConvVision(nn.Module):
    """Images to one vector each.

    Attributes:
      image_size: side of the images, a multiple of 16.
      width: channels of the first map; the next ones have twice and four times as many.
      projection: width of the embedding.
    """

    image_size: int = 32
    width: int = 48
    projection: int = 96
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Embedded:
        """Encodes normalised images [batch, image_size, image_size, 3].

        Raises:
          ValueError: images of another size, or sides that do not divide by 16.
        """
        side = self.image_size
        if images.shape[1:] != (side, side, 3) or side % int(np.prod(STRIDES)):
            raise ValueError(
                f"this image encoder takes [batch, {side}, {side}, 3] with a side that is a "
                f"multiple of {np.prod(STRIDES)}, got {images.shape}"
            )
        x = images.astype(self.dtype)
        for level, stride in enumerate(STRIDES):
            shape = (stride, stride, x.shape[-1], self.width * 2**level)
            init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            kernel = self.param(f"kernel_{level}", init, shape)
            x = strided_conv(x, kernel.astype(self.dtype), stride=stride)
            bias = self.param(f"bias_{level}", nn.initializers.zeros, (x.shape[-1],))
            # The first level is not normed: grey and white differ in nothing but their length.
            x = gelu(add_bias(x if level == 0 else layer_norm(x), bias))
        x = x.reshape(len(x), -1)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        out = Dense(self.projection, kernel_init=init, dtype=self.dtype, name="projection")(x)
        return Embedded(out.astype(jnp.float32))
