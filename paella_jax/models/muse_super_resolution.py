"""MUSE's super-resolution transformer: a small picture's tokens and text -> a larger one's tokens.

The small map runs through a few self-attention layers of its own; what comes out, followed by the
projected text, is what the main layers' cross-attention reads (docs/models/muse.md 1.3). Beyond
what muse.py had to choose, the paper leaves open a norm at the end of the small map's layers: it
has one here, since the residual stream grows with depth and the text beside it does not.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.layers import Dtype
from paella_jax.models.multi_axis_attention import check_multi_axis
from paella_jax.models.muse import (
    MusePredictor,
    TextContext,
    TokenEmbedding,
    add_noise_level,
    layer_stack,
    token_head,
)
from paella_jax.models.uvit_blocks import LearnedLayerNorm
from paella_jax.typing import Array


class SuperResolution(MusePredictor, nn.Module):
    """Predicts the clean tokens of a masked (or randomly replaced) large token map.

    Defaults are the paper's Table 6; its heads are a guess (64 channels each).
    """

    codebook_size: int = 8192
    low_codebook_size: int = 8192
    mask_row: bool = True  # the input table has one row more, the mask
    grid: int = 64  # side of the token map
    low_grid: int = 16  # side of the small picture's
    low_depth: int = 16
    width: int = 1024
    depth: int = 32
    num_heads: int = 16
    feed_forward_width: int = 4096
    block_size: int = 8  # tokens per side of a local attention block
    time_width: int = 0  # of the noise level's embedding; 0: the network is not told it, as MUSE
    dropout: float = 0.0
    remat: bool = False  # recompute layer activations in the backward pass
    attention: str | None = None  # jax.nn.dot_product_attention implementation
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array,
        cond: Conditioning,
        *,
        deterministic: bool = True,
        return_features: bool = False,
    ) -> Array:
        """Logits of the clean tokens.

        Args:
          tokens: int32 [batch, grid, grid], `mask_token` where unknown.
          t: float32 [batch], share of corrupted tokens in [0, 1]; read with a `time_width` only.
          cond: text states (absent where `text_mask` is all False), and `low_tokens` int32
            [batch, low_grid, low_grid] in [0, low_codebook_size).
          deterministic: switches dropout off.
          return_features: stop before the classifier, for a chunked loss.

        Returns:
          float32 [batch, grid, grid, codebook_size], or the classifier's input [..., width].

        Raises:
          ValueError: token maps of another size, no small picture, another condition than text,
            an odd number of heads, or blocks that do not tile the map.
        """
        self.check(tokens.shape)
        check_multi_axis(self.grid, self.num_heads, self.block_size)
        context, mask = self._context(cond, deterministic)
        x = TokenEmbedding(self.vocabulary_size, self.grid, self.width, name="embedding")(tokens)
        x = add_noise_level(self, x.astype(self.dtype), t)
        x = layer_stack(self, "layer", self.depth, x, context, mask, deterministic, self.block_size)
        return token_head(self, x, self.grid, return_features)

    def _context(self, cond: Conditioning, deterministic: bool) -> tuple[Array, Array | None]:
        """The small picture, then the text: [B, low_grid^2 + 1 + L, width], and its mask."""
        low_tokens = cond.low_tokens
        if low_tokens is None:
            raise ValueError("super-resolution needs low_tokens, the small picture's token map")
        side = self.low_grid
        if tuple(low_tokens.shape[1:]) != (side, side):
            raise ValueError(
                f"low_tokens have shape {tuple(low_tokens.shape)}; this network enlarges maps of "
                f"{side}x{side} tokens: give [batch, {side}, {side}]"
            )
        low = TokenEmbedding(self.low_codebook_size, side, self.width, name="low_embedding")
        x = low(low_tokens).astype(self.dtype)
        x = layer_stack(self, "low_layer", self.low_depth, x, None, None, deterministic)
        x = LearnedLayerNorm(name="low_norm")(x)
        text, mask = TextContext(self.width, self.dtype, name="context")(cond)
        if mask is not None:
            mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)
        return jnp.concatenate([x, text.astype(x.dtype)], axis=1), mask
