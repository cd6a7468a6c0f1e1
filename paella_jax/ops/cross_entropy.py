"""Cross-entropy over a large vocabulary, computed in chunks so that logits never exist twice."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from paella_jax.ops.linear import dense
from paella_jax.typing import Array


class TokenScores(NamedTuple):
    """Per-position results, both float32 [batch, height, width]."""

    loss: Array
    correct: Array


def _score(features: Array, kernel: Array, targets: Array, smoothing: float) -> TokenScores:
    logits = dense(features, kernel, precision_dtype=jnp.float32)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # torch's label smoothing: (1-s) on the target plus s spread evenly over every class.
    expected = (1.0 - smoothing) * target_logit + smoothing * logits.mean(-1)
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return TokenScores(log_total - expected, correct)


def chunked_cross_entropy(
    features: Array, kernel: Array, targets: Array, *, smoothing: float = 0.0, chunks: int = 1
) -> TokenScores:
    """Label-smoothed cross-entropy of `softmax(features @ kernel)`.

    The positions of every image are cut into `chunks`; the batch axis stays whole, so a sharded
    batch stays sharded. Each chunk's logits are recomputed in the backward pass.

    Args:
      features: [batch, height, width, width_in], the classifier's input.
      kernel: [width_in, classes].
      targets: int [batch, height, width].
      smoothing: label smoothing in [0, 1), torch's meaning.
      chunks: a divisor of height * width.

    Raises:
      ValueError: `chunks` does not divide the number of positions.
    """
    batch, height, width = targets.shape
    positions = height * width
    if positions % chunks:
        raise ValueError(f"loss chunks {chunks} must divide the {positions} positions of an image")
    if chunks == 1:
        return _score(features, kernel, targets, smoothing)
    features = features.reshape(batch, chunks, positions // chunks, -1).swapaxes(0, 1)
    flat_targets = targets.reshape(batch, chunks, positions // chunks).swapaxes(0, 1)

    @jax.checkpoint
    def score_chunk(carry: None, chunk: tuple[Array, Array]) -> tuple[None, TokenScores]:
        return carry, _score(chunk[0], kernel, chunk[1], smoothing)

    _, scores = lax.scan(score_chunk, None, (features, flat_targets))
    return TokenScores(*(s.swapaxes(0, 1).reshape(batch, height, width) for s in scores))
