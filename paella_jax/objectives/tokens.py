"""Training losses of the token predictors (reference/paella.md 2.6, muse.md 4)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from paella_jax.ops.cross_entropy import chunked_cross_entropy

Array = jax.Array


def weighted_token_loss(
    features: Array,
    classifier: Array,
    targets: Array,
    noise_mask: Array,
    weight: Array,
    *,
    smoothing: float = 0.1,
    chunks: int = 1,
) -> tuple[Array, dict[str, Array]]:
    """Label-smoothed cross-entropy, weighted per token and normalised per image.

    Args:
      features: [batch, h, w, width], the predictor's output before its classifier.
      classifier: [width, codes].
      targets: int32 [batch, h, w], the clean tokens.
      noise_mask: bool [batch, h, w].
      weight: float32 [batch, h, w], of each token's loss; not all 0 in an image.
      smoothing: label smoothing.
      chunks: see `chunked_cross_entropy`.

    Returns:
      The scalar loss, and metrics: accuracy over all tokens, over the noised ones, and the
      unweighted loss of the noised ones.
    """
    scores = chunked_cross_entropy(
        features, classifier, targets, smoothing=smoothing, chunks=chunks
    )
    per_image = (scores.loss * weight).sum((1, 2)) / weight.sum((1, 2))
    noised = noise_mask.astype(jnp.float32)
    count = jnp.maximum(noised.sum(), 1.0)
    metrics = {
        "accuracy": scores.correct.mean(),
        "accuracy_noised": (scores.correct * noised).sum() / count,
        "loss_noised": (scores.loss * noised).sum() / count,
    }
    return per_image.mean(), metrics


def with_bias(features: Array, predictor: Mapping[str, Array]) -> tuple[Array, Array]:
    """Features and classifier of a predictor's parameters, for a product without a bias.

    A bias (only U-ViTs with `use_bias` have one) becomes the classifier's last row, with ones as
    the features' last column.
    """
    classifier = predictor["classifier"]
    bias = predictor.get("classifier_bias")
    if bias is None:
        return features, classifier
    ones = jnp.ones((*features.shape[:-1], 1), features.dtype)
    return jnp.concatenate([features, ones], -1), jnp.concatenate([classifier, bias[None]])
