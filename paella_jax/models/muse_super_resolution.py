"""MUSE's super-resolution transformer: a small image's tokens and text -> a larger one's tokens.

The small map runs through a few self-attention layers of its own; what comes out, followed by the
projected text, is what the main layers' cross-attention reads (docs/models/muse.md 1.3). Beyond
what muse.py had to choose, the paper leaves open a norm at the end of the small map's layers: it
has one here, since the residual stream grows with depth and the text beside it does not.
"""

from __future__ import annotations

import jax.numpy as jnp

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.context import Context, joined, mapped
from paella_jax.models.multi_axis_attention import check_multi_axis
from paella_jax.models.muse import MusePredictor, TextContext, TokenEmbedding
from paella_jax.models.transformer_layers import LearnedLayerNorm
from paella_jax.typing import Array


class SuperResolution(MusePredictor):
    """Predicts the clean tokens of a masked (or randomly replaced) large token map.

    Defaults are the paper's Table 6; its heads are a guess (64 channels each).
    """

    low_codebook_size: int = 8192
    grid: int = 64
    low_grid: int = 16  # side of the small image's token map
    low_depth: int = 16
    width: int = 1024
    depth: int = 32
    feed_forward_width: int = 4096
    block_size: int = 8

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError as the base does, for odd heads or blocks that do not tile the map."""
        super().check(shape)
        check_multi_axis(self.grid, self.num_heads, self.block_size)

    def context(self, cond: Conditioning, deterministic: bool) -> tuple[Context, Array | None]:
        """The small image, then the text: [B, low_grid^2 + 1 + L, width], and its mask."""
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
        x = self.layers("low_layer", self.low_depth, x, None, None, deterministic)
        x = LearnedLayerNorm(name="low_norm")(x)
        text, mask = TextContext(self.width, self.dtype, name="context")(cond)
        if mask is not None:
            mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)
        return joined([x, mapped(text, lambda _, y: y.astype(x.dtype), "")]), mask
