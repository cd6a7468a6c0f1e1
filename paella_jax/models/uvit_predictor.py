"""aMUSEd's U-ViT behind the interface that every token predictor has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from paella_jax.models.conditioning import Conditioning, text_alone
from paella_jax.models.context import both
from paella_jax.models.uvit import RELEASED_MICRO_CONDS, UViT
from paella_jax.typing import Array, Tree

LEVEL_SCALE = 1000.0  # the sinusoids are made for numbers the size of an image side


@dataclass(frozen=True)
class UViTPredictor:
    """(tokens, t, Conditioning) -> logits, by a U-ViT.

    Attributes:
      network: with a sixth micro-condition it reads the noise level t.
      masks: whether it is trained with masks; else the mask's row is unused.
    """

    network: UViT
    masks: bool = True

    def init(self, key: Array, tokens: Array, t: Array, cond: Conditioning) -> Tree:
        """Fresh variables, as a Linen module's `init`."""
        return self.network.init(key, tokens, **self._inputs(t, cond))

    def apply(
        self, variables: Tree, tokens: Array, t: Array, cond: Conditioning, **kwargs: Any
    ) -> Any:
        """The logits, called as a Linen module's `apply`; `kwargs` are those of `UViT`."""
        return self.network.apply(variables, tokens, **self._inputs(t, cond), **kwargs)

    def _inputs(self, t: Array, cond: Conditioning) -> dict[str, Any]:
        text = text_alone(cond, "U-ViT")
        micro = cond.micro_conds
        if micro is None:
            raise ValueError("the U-ViT needs micro_conds: width, height, crop top, left, score")
        micro = micro.astype(jnp.float32)
        if self.knows_noise_level:
            level = LEVEL_SCALE * t.astype(jnp.float32)
            micro = jnp.concatenate([micro, level[:, None]], axis=1)
        pooled = cond.text_pooled
        if pooled is None:
            pooled = mean_text(both(text).values, cond.text_mask)
        return {
            "encoder_hidden_states": text,
            "pooled_text": pooled,
            "micro_conds": micro,
            "text_mask": cond.text_mask,
        }

    @property
    def codebook_size(self) -> int:
        """Classes of the output."""
        return self.network.codebook_size

    @property
    def mask_token(self) -> int | None:
        """The id of an unknown token; None where tokens are replaced by random ones."""
        return self.network.mask_token if self.masks else None

    @property
    def grid_divisor(self) -> int:
        """The token map's height and width must be multiples of this."""
        return self.network.grid_divisor

    @property
    def knows_noise_level(self) -> bool:
        """Whether the network reads `t`."""
        return self.network.micro_conds > RELEASED_MICRO_CONDS


def mean_text(states: Array, mask: Array | None) -> Array:
    """Mean of the real text states, what stands for CLIP's pooled text with other encoders.

    Args:
      states: float [batch, L, C].
      mask: bool [batch, L], or None where every position is real.

    Returns:
      float32 [batch, C].
    """
    states = states.astype(jnp.float32)
    if mask is None:
        return states.mean(1)
    weight = mask.astype(jnp.float32)[..., None]
    return (states * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)
