"""Würstchen's Stage C, the prior: text -> the compressor's latents.

Source: docs/models/wuerstchen.md 5.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.blocks import BlockInputs, BlockOptions, run_blocks
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.context import Context, mapped
from paella_jax.models.layers import Dense, Dtype, layer_norm, timestep_embedding
from paella_jax.models.positions import with_positions
from paella_jax.models.transformer_layers import linear_init
from paella_jax.typing import Array


class StageC(nn.Module):
    """Predicts the noise in the compressor's latents. Defaults are the released v2 model."""

    channels: int = 16  # of the latents
    width: int = 1536
    depth: int = 32  # repetitions of C, T, A at constant resolution
    num_heads: int = 24
    time_width: int = 64  # timestep embedding width
    kernel_size: int = 3  # depthwise convolution
    dropout: float = 0.1
    self_attention: bool = True
    # For maps of a few positions: position vectors, and latents of their size; not in the released.
    positions: bool = False
    remat: bool = False  # recompute block activations in the backward pass
    remat_keeps: str = "nothing"  # of a recomputed block: nothing, or products
    loop: bool = False  # repeated blocks as one loop: compiles in a fraction of the time
    depthwise: str = "auto"  # implementation of ops/depthwise.py
    attention: str | None = "auto"  # kernel of ops/attention.py
    attention_dropout: str = "probabilities"  # what it sets to zero: probabilities or output
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        return_parts: bool = False,
    ) -> Array | tuple[Array, Array]:
        """The predicted noise (x - a) / (|1 - b| + 1e-5); x itself at initialisation.

        Args:
          x: float [batch, h, w, channels], noised latents in the scale (y + 1) / 42; any h and w.
          t: float32 [batch] in [0, 1], 1 is all noise.
          cond: `text` is needed; `text_mask` and `text_weights` are honoured, the rest is ignored.
          deterministic: switches dropout off.
          return_parts: return (a, b) instead.

        Returns:
          float32 [batch, h, w, channels], or two of them.

        Raises:
          ValueError: the text is missing, x has other channels or the heads do not fit.
        """
        text = self._checked_text(x.shape, cond)
        # At the released widths normal(0.02); in a narrow network that left the text inaudible.
        project = lambda name: Dense(
            self.width, kernel_init=linear_init, dtype=self.dtype, name=name
        )
        hidden = mapped(text, lambda name, y: project(name)(y), "text_in")
        out = lambda name, y: project(name)(nn.leaky_relu(y, 0.2))
        sequence = mapped(hidden, out, "text_out")
        time = timestep_embedding(t, self.time_width)
        hidden = self._embedded(x)
        inputs = BlockInputs(time, sequence, cond.text_mask, cond.text_weights, deterministic)
        looped = self if self.loop else None
        pattern, options = "CTA" * self.depth, self._block_options()
        hidden = run_blocks(hidden, pattern, "block", options, inputs, loop_in=looped)
        # The head divides by |1 - b|: from here on float32, whatever the compute dtype.
        head = Dense(2 * self.channels, kernel_init=nn.initializers.zeros, name="output")
        a, b = jnp.split(head(layer_norm(hidden.astype(jnp.float32))), 2, axis=-1)
        return (a, b) if return_parts else (x.astype(jnp.float32) - a) / (jnp.abs(1.0 - b) + 1e-5)

    def _embedded(self, x: Array) -> Array:
        """Latents [B, h, w, channels] -> [B, h, w, width]."""
        deviation = 1.0 / math.sqrt(self.channels) if self.positions else 0.02
        init = nn.initializers.normal(deviation)
        hidden = Dense(self.width, kernel_init=init, dtype=self.dtype, name="projection")(x)
        return with_positions(hidden) if self.positions else hidden

    def _block_options(self) -> BlockOptions:
        return BlockOptions(
            self.num_heads,
            math.sqrt(1.0 / self.depth),
            self.dropout,
            self.kernel_size,
            self.self_attention,
            self.remat,
            self.remat_keeps,
            self.depthwise,
            self.attention_dropout,
            self.attention,
            self.dtype,
        )

    def _checked_text(self, shape: tuple[int, ...], cond: Conditioning) -> Context:
        if cond.text is None:
            raise ValueError("Stage C needs a text; for no text give the embedding of an empty one")
        if len(shape) != 4 or shape[-1] != self.channels:
            raise ValueError(f"latents have shape {shape}, need [batch, h, w, {self.channels}]")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the width {self.width}")
        if self.depth < 1 or self.time_width < 4:
            raise ValueError(
                f"depth must be at least 1 and time_width at least 4, got {self.depth} and "
                f"{self.time_width}"
            )
        return cond.text_context
