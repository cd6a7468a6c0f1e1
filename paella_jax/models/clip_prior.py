"""The CLIP prior: predicts the noise in an image embedding, given the text's.

Source: docs/models/paella.md 4.3.
"""

from __future__ import annotations

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
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        y = layer_norm(x.astype(jnp.float32), 1e-5)
        last = (1,) * (x.ndim - 1) + shape
        return (y * scale.reshape(last) + bias.reshape(last)).astype(self.dtype)


class PriorBlock(nn.Module):
    """Two-layer MLP with a norm after each layer; gives the update of the residual stream."""

    width: int
    num_blocks: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[batch, stream + text + time] -> [batch, width]."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scaled = nn.initializers.variance_scaling(1 / 3 / self.num_blocks, "fan_in", "uniform")
        hidden = EXPANSION * self.width
        x = Dense(hidden, use_bias=False, kernel_init=scaled, name="expand", **dtypes)(x)
        x = gelu(AffineLayerNorm(name="hidden_norm", **dtypes)(x))
        x = Dense(self.width, use_bias=False, kernel_init=torch_uniform, name="contract", **dtypes)(
            x
        )
        return AffineLayerNorm(name="out_norm", **dtypes)(x)


class ClipPrior(nn.Module):
    """The network; the defaults are the released model's (899 770 624 parameters).

    Initialised as the release, except that biases start at zero (there: torch's small uniform).

    Attributes:
      clip_width: width of both embeddings.
      width: width of the residual stream.
      time_width: width of the timestep embedding.
      num_blocks: residual blocks.
      dtype: compute dtype; norms and the timestep embedding stay float32.
      param_dtype: dtype of the parameters.
    """

    clip_width: int = 1024
    width: int = 1280
    time_width: int = 64
    num_blocks: int = 48
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

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
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = lambda width, name: Dense(width, kernel_init=torch_uniform, name=name, **dtypes)
        time = timestep_embedding(t, self.time_width)
        condition = jnp.concatenate([text_embedding.astype(jnp.float32), time], axis=-1)
        condition = condition.astype(self.dtype)
        stream = dense(self.width, "input")(x)
        for index in range(self.num_blocks):
            block = PriorBlock(self.width, self.num_blocks, name=f"block_{index}", **dtypes)
            stream = stream + block(jnp.concatenate([stream, condition], axis=-1))
        return dense(self.clip_width, "output")(stream).astype(jnp.float32)
