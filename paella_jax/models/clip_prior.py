"""The CLIP prior: predicts the noise in an image embedding, given the text's.

Source: docs/models/paella.md 4.3.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.layers import Dense, Dtype, gelu, layer_norm, timestep_embedding
from paella_jax.typing import Array

EXPANSION = 4  # hidden width of a block over the width of the stream

# torch's default for linear layers, U(+-1/sqrt(inputs)); the release starts from it.
torch_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class AffineLayerNorm(nn.Module):
    """Layer norm over the last axis with scale and bias, eps 1e-5, in float32."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        y = layer_norm(x.astype(jnp.float32), 1e-5)
        last = (1,) * (x.ndim - 1) + shape
        return (y * scale.reshape(last) + bias.reshape(last)).astype(self.dtype)


class PriorBlock(nn.Module):
    """Two-layer MLP with a norm after each layer; gives the update of the residual stream."""

    width: int
    num_blocks: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, stream + text + time] -> [batch, width]."""
        scaled = nn.initializers.variance_scaling(1 / 3 / self.num_blocks, "fan_in", "uniform")
        dense = partial(Dense, use_bias=False, dtype=self.dtype)
        x = dense(EXPANSION * self.width, kernel_init=scaled, name="expand")(x)
        x = gelu(AffineLayerNorm(self.dtype, name="hidden_norm")(x))
        x = dense(self.width, kernel_init=torch_uniform, name="contract")(x)
        return AffineLayerNorm(self.dtype, name="out_norm")(x)


class ClipPrior(nn.Module):
    """The network; the defaults are the released model's (899 770 624 parameters).

    Initialised as the release, except that biases start at zero (there: torch's small uniform).

    Attributes:
      clip_width: width of both embeddings.
      width: width of the residual stream.
      time_width: width of the timestep embedding.
      num_blocks: residual blocks.
      dtype: compute dtype; norms and the timestep embedding stay float32.
    """

    clip_width: int = 1024
    width: int = 1280
    time_width: int = 64
    num_blocks: int = 48
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array, text_embedding: Array) -> Array:
        """Predicted noise.

        Args:
          x: float [batch, clip_width], the noised image embedding.
          t: float32 [batch] in [0, 1].
          text_embedding: float [batch, clip_width]; zeros without a text.

        Returns:
          float32 [batch, clip_width].
        """
        dense = partial(Dense, kernel_init=torch_uniform, dtype=self.dtype)
        time = timestep_embedding(t, self.time_width)
        condition = jnp.concatenate([text_embedding.astype(jnp.float32), time], axis=-1)
        condition = condition.astype(self.dtype)
        stream = dense(self.width, name="input")(x)
        for index in range(self.num_blocks):
            block = PriorBlock(self.width, self.num_blocks, name=f"block_{index}", dtype=self.dtype)
            stream = stream + block(jnp.concatenate([stream, condition], axis=-1))
        return dense(self.clip_width, name="output")(stream).astype(jnp.float32)
