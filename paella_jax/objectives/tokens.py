"""Training losses of the token predictors (reference/paella.md 2.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from paella_jax.noise.tokens import loss_weight
from paella_jax.ops.cross_entropy import chunked_cross_entropy

Array = jax.Array


def weighted_token_loss(
    features: Array,
    classifier: Array,
    targets: Array,
    noise_mask: Array,
    t: Array,
    *,
    smoothing: float = 0.1,
    minimum: float = 0.3,
    chunks: int = 1,
) -> tuple[Array, dict[str, Array]]:
    """Label-smoothed cross-entropy, weighted per token and normalised per image.

    Args:
      features: [batch, h, w, width], the predictor's output before its classifier.
      classifier: [width, codes].
      targets: int32 [batch, h, w], the clean tokens.
      noise_mask: bool [batch, h, w].
      t: float32 [batch].
      smoothing: label smoothing.
      minimum: loss weight of a clean token at t = 0.
      chunks: see `chunked_cross_entropy`.

    Returns:
      The scalar loss, and metrics: accuracy over all tokens, over the noised ones, and the
      unweighted loss of the noised ones.
    """
    scores = chunked_cross_entropy(
        features, classifier, targets, smoothing=smoothing, chunks=chunks
    )
    weight = loss_weight(noise_mask, t, minimum)
    per_image = (scores.loss * weight).sum((1, 2)) / weight.sum((1, 2))
    noised = noise_mask.astype(jnp.float32)
    count = jnp.maximum(noised.sum(), 1.0)
    metrics = {
        "accuracy": scores.correct.mean(),
        "accuracy_noised": (scores.correct * noised).sum() / count,
        "loss_noised": (scores.loss * noised).sum() / count,
    }
    return per_image.mean(), metrics
