"""Multi-axis self-attention over a square token map (docs/models/muse.md 1.3).

Full attention over a 64x64 map compares 4096 tokens with 4096. Here every head sees 64 of them:
half of the heads those of the token's own 8x8 block, the other half those at the token's place in
every block. Two layers connect any two tokens.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from einops import rearrange

from paella_jax.models.transformer_layers import SeparateAttention
from paella_jax.ops.attention import dot_product_attention
from paella_jax.typing import Array

MAP = "b (i p j q) n d"  # block row, row in block, block column, column in block
LOCAL, ACROSS = "(b i j) (p q) n d", "(b p q) (i j) n d"


class MultiAxisAttention(SeparateAttention):
    """`SeparateAttention` of a square map to itself, along two axes; the same parameters.

    x and context are the same [B, side * side, C], and there is no mask.
    """

    block_size: int = 8

    def attend(self, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        """Half of the heads inside blocks, half across them."""
        assert mask is None, "a square map has no padding"
        return multi_axis_attention(
            query, key, value, block_size=self.block_size, implementation=self.implementation
        )


def multi_axis_attention(
    query: Array, key: Array, value: Array, *, block_size: int, implementation: Any = None
) -> Array:
    """Attention inside blocks (first half of the heads) and across them (second half).

    Args:
      query: [batch, side * side, heads, head_dim], the map row by row.
      key: like the query.
      value: like the query.
      block_size: tokens per side of a block.
      implementation: of ops/attention.py.

    Returns:
      [batch, side * side, heads, head_dim].

    Raises:
      ValueError: an odd number of heads, or blocks that do not tile the map.
    """
    side, heads = math.isqrt(query.shape[1]), query.shape[2]
    check_multi_axis(side, heads, block_size)
    sizes = {"i": side // block_size, "j": side // block_size, "p": block_size, "q": block_size}

    def attend(axis: str, part: slice) -> Array:
        rows = [rearrange(x[:, :, part], f"{MAP} -> {axis}", **sizes) for x in (query, key, value)]
        out = dot_product_attention(*rows, implementation=implementation)
        return rearrange(out, f"{axis} -> {MAP}", **sizes)

    half = heads // 2
    parts = [attend(LOCAL, slice(None, half)), attend(ACROSS, slice(half, None))]
    return jnp.concatenate(parts, axis=2)


def check_multi_axis(side: int, num_heads: int, block_size: int) -> None:
    """Raises ValueError for an odd number of heads, or blocks that do not tile the map."""
    if num_heads % 2:
        raise ValueError(
            f"num_heads={num_heads} must be even: half of the heads attend inside blocks, half "
            "across them"
        )
    if block_size < 1 or side % block_size:
        raise ValueError(
            f"block_size={block_size} must divide the token map's side {side}; for a {side}x{side} "
            f"map choose one of {[n for n in range(1, side + 1) if side % n == 0]}"
        )
