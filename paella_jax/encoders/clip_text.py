"""CLIP's text tower: OpenAI and OpenCLIP weights load into it, and it trains from scratch.

Radford et al. 2021, section 2.4; where the released models differ: docs/models/muse.md, traps 1,
12.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from paella_jax.encoders.clip_transformer import ClipOutput, ClipTower, tower_config, tower_fields
from paella_jax.typing import Array


class ClipText(ClipTower):
    """Ids to one vector per token and one per text. Causal: a token sees those before it."""

    vocab_size: int = 49408
    max_length: int = 77
    end_token: int | None = None  # its first occurrence is pooled; None pools the highest id

    @nn.compact
    def __call__(
        self, ids: Array, mask: Array | None = None, *, all_hidden: bool = False
    ) -> ClipOutput:
        """Encodes a batch of texts.

        Args:
          ids: [batch, length <= max_length] integers below `vocab_size`; others give nan.
          mask: [batch, length], True (or non-zero) at tokens that others may see. The Paella and
            MUSE references give none: causality already hides the padding on the right.
          all_hidden: also return the states on the way.

        Raises:
          ValueError: `ids` is not a matrix of integers or too long, `mask` has another shape, or
            the module's sizes do not fit.
        """
        self._check(ids, mask)
        table = lambda name, rows, std: self.param(
            name, nn.initializers.normal(std), (rows, self.width)
        )
        tokens = table("token_embedding", self.vocab_size, 0.02)
        positions = table("position_embedding", self.max_length, 0.01)[None, : ids.shape[1]]
        x = jnp.take(tokens, ids, axis=0, mode="fill").astype(jnp.float32)
        states = self.run(x + positions.astype(jnp.float32), _hide(ids.shape[1], mask), all_hidden)
        last = self.norm("final_norm")(states[-1])
        marks = ids if self.end_token is None else ids == self.end_token
        pooled = jnp.take_along_axis(last, jnp.argmax(marks, axis=1)[:, None, None], axis=1)[:, 0]
        return self.output(last, pooled, states, all_hidden)

    def _check(self, ids: Array, mask: Array | None) -> None:
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers [batch, length], not {ids.dtype} {ids.shape}")
        if ids.shape[1] > self.max_length:
            raise ValueError(
                f"ids have length {ids.shape[1]} but there are positions for {self.max_length} only"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"mask has shape {mask.shape}, ids have {ids.shape}; they must agree")


def _hide(length: int, mask: Array | None) -> Array:
    """Additive float32 [batch or 1, 1, query, key]: 0 where visible, the least float elsewhere."""
    visible = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if mask is not None:
        visible = visible & mask.astype(bool)[:, None, None, :]
    # Finite, so that a query which may see nothing is uniform attention and not nan.
    return jnp.where(visible, 0.0, jnp.finfo(jnp.float32).min)


def clip_text_from_hf_config(config: dict[str, Any]) -> ClipText:
    """The text tower that a Hugging Face `config.json` describes.

    Reads those of CLIPTextModel, CLIPTextModelWithProjection and of a whole CLIPModel. Absent
    fields have transformers' defaults, as it leaves those out when it saves a whole model.

    Raises:
      ValueError: another model type, or a field this tower has no form for.
    """
    fields, projection = tower_config(config, "text")
    end = fields.get("eos_token_id", 49407)
    if not isinstance(end, int):
        raise ValueError(f"eos_token_id is {end!r}; the text tower pools at one id")
    return ClipText(
        vocab_size=fields.get("vocab_size", 49408),
        max_length=fields.get("max_position_embeddings", 77),
        projection=projection,
        # Old configs have a wrong 2 there; their models pool at the highest id.
        end_token=None if end == 2 else end,
        **tower_fields(fields, width=512, num_heads=8, hidden_dim=2048),
    )
