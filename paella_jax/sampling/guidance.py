"""Classifier-free guidance as a wrapper around two predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from paella_jax.ops.target import target_platform
from paella_jax.typing import Array

# (tokens [batch, h, w], t [batch]) -> logits [batch, h, w, codes]
Predict = Callable[[Array, Array], Array]
# The same with a guidance scale (a float32 scalar, or None where guidance is off).
Denoise = Callable[[Array, Array, Array | None], Array]
# Map positions on one accelerator up to which both predictions fill it better as one batch: a few
# images (docs/speed.md). Beyond that two calls share what does not depend on the condition.
FEW_POSITIONS = 16384


def combine(conditional: Array, unconditional: Array, scale: Array | float) -> Array:
    """conditional * w + unconditional * (1 - w); w = 1 is no guidance."""
    return conditional * scale + unconditional * (1.0 - scale)


def mix(predictions: Sequence[Predict], weights: Array) -> Predict:
    """Weighted sum of several conditions' logits: several texts or images in one image.

    Args:
      predictions: one per condition.
      weights: float32 [batch, conditions], or [batch, conditions, h, w] where each condition has
        its own region. Weights that sum to one keep the logits' scale.
    """

    def predict(tokens: Array, t: Array) -> Array:
        total: Array | float = 0.0
        for index, one in enumerate(predictions):
            weight = weights[:, index].reshape(weights.shape[0], *weights.shape[2:] or (1, 1), 1)
            total = total + weight * one(tokens, t)
        return jnp.asarray(total)

    return predict


def guide(conditional: Predict, unconditional: Predict | None) -> Denoise:
    """Two separate calls: a quarter of the memory of one doubled batch, equal time on CPU."""

    def denoise(tokens: Array, t: Array, scale: Array | None) -> Array:
        logits = conditional(tokens, t)
        if scale is None or unconditional is None:
            return logits
        return combine(logits, unconditional(tokens, t), scale)

    return denoise


def guide_jointly(conditional: Predict, both: Predict) -> Denoise:
    """One call on a doubled batch: `both` takes [tokens; tokens] and gives [cond; uncond].

    Fills an accelerator better at small batches. `conditional` serves the steps without guidance.
    """

    def denoise(tokens: Array, t: Array, scale: Array | None) -> Array:
        if scale is None:
            return conditional(tokens, t)
        logits = both(jnp.concatenate([tokens, tokens]), jnp.concatenate([t, t]))
        conditional_logits, unconditional_logits = jnp.split(logits, 2)
        return combine(conditional_logits, unconditional_logits, scale)

    return denoise


def runs_jointly(asked: bool | None, positions: float) -> bool:
    """Whether both predictions are made by one call (`guide_jointly`).

    Args:
      asked: None is for few positions on an accelerator.
      positions: of the maps that one device draws at once.
    """
    few = target_platform() != "cpu" and positions <= FEW_POSITIONS
    return few if asked is None else asked


def without_guidance(denoise: Denoise) -> Denoise:
    """The same prediction with guidance off, whatever the scale."""
    return lambda tokens, t, scale: denoise(tokens, t, None)
