"""Cross-entropy on corrupted tokens, at the same places for every network (docs/models/muse.md 4).

Training and validation losses of the two corruptions are not comparable: they differ in the level,
in which positions count and in their weights. Here all three are fixed: an exact number of
positions of each image, drawn from the sample's key and the level alone, with equal weight.

One difference remains and is the methods' own: a mask shows which tokens are missing, random codes
do not, so the same cross-entropy is harder to reach with uniform corruption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from paella_jax.noise.masking import apply_mask, exact_mask, num_masked
from paella_jax.noise.tokens import random_tokens, split_keys, uniform_map
from paella_jax.typing import Array

Scores = dict[str, dict[str, float]]
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def level_name(level: float) -> str:
    """A level as the results call it: "30" for 0.3."""
    return f"{100 * level:g}"


def corrupt_exactly(
    keys: Array, tokens: Array, level: float, *, codebook_size: int, mask_token: int | None
) -> tuple[Array, Array]:
    """Corrupts the same positions of each image whatever the corruption is.

    A random token is drawn from the whole codebook and may by chance equal the original, as in
    training (noise/tokens.py); it counts as corrupted then too. Drawing from the other codes would
    show the network something it never saw, and lets it rule out the token it reads.

    Args:
      keys: [batch] PRNG keys.
      tokens: int32 [batch, h, w], clean.
      level: fraction of the positions in (0, 1]; at least one position is corrupted.
      codebook_size: the vocabulary.
      mask_token: the mask's id; None replaces by random tokens.

    Returns:
      The corrupted tokens int32 and where they are corrupted, bool, both [batch, h, w].
    """
    batch, *grid = tokens.shape
    count = num_masked(jnp.full((batch,), level, jnp.float32), grid[0] * grid[1])
    mask_keys, token_keys = split_keys(keys)
    chosen = exact_mask(uniform_map(mask_keys, tuple(grid)), count)
    if mask_token is not None:
        return apply_mask(tokens, chosen, mask_token), chosen
    replacement = random_tokens(token_keys, tuple(grid), codebook_size)
    return jnp.where(chosen, replacement, tokens), chosen


def corrupted_token_scores(
    logits: Callable[[Array, Array], Array],
    tokens: Array,
    keys: Array,
    levels: Sequence[float] = LEVELS,
    *,
    codebook_size: int,
    mask_token: int | None,
) -> Scores:
    """How well a network predicts the corrupted tokens of a batch, level by level.

    Args:
      logits: (corrupted tokens int32 [batch, h, w], t float32 [batch]) -> float32
        [batch, h, w, codebook_size]; t is the fraction that is truly corrupted. Without guidance.
      tokens: int32 [batch, h, w], clean.
      keys: [batch] PRNG keys, one per image: the same for every network that is compared.
      levels: fractions in (0, 1].
      codebook_size: the vocabulary.
      mask_token: the mask's id of a network trained on masks, None for uniform corruption.

    Returns:
      {"30": {"cross_entropy": nats, "accuracy": in [0, 1], "positions": per image,
      "images": batch}, ...}, one entry per level.

    Raises:
      ValueError: a level outside (0, 1], an empty batch, a number of keys other than of images, or
        logits of the wrong shape.
    """
    _check(tokens, keys, levels)
    scores: Scores = {}
    for level in levels:
        number = round(1000 * level)  # so that a level's positions do not depend on the others
        level_keys = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
        corrupted, chosen = corrupt_exactly(
            level_keys, tokens, level, codebook_size=codebook_size, mask_token=mask_token
        )
        fraction = chosen.mean((1, 2), dtype=jnp.float32)
        predicted = logits(corrupted, fraction)
        if predicted.shape != (*tokens.shape, codebook_size):
            raise ValueError(
                f"logits have shape {list(predicted.shape)}, not {[*tokens.shape, codebook_size]}"
            )
        scores[level_name(level)] = _score(predicted, tokens, chosen)
    return scores


@jax.jit
def _means(predicted: Array, tokens: Array, chosen: Array) -> tuple[Array, Array]:
    predicted = predicted.astype(jnp.float32)
    target = jnp.take_along_axis(predicted, tokens[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(predicted, axis=-1) - target
    correct = jnp.argmax(predicted, axis=-1) == tokens
    return loss.mean(where=chosen), correct.mean(where=chosen, dtype=jnp.float32)


def _score(predicted: Array, tokens: Array, chosen: Array) -> dict[str, float]:
    loss, accuracy = _means(predicted, tokens, chosen)
    return {
        "cross_entropy": float(loss),
        "accuracy": float(accuracy),
        "positions": int(chosen[0].sum()),
        "images": len(tokens),
    }


def _check(tokens: Array, keys: Array, levels: Sequence[float]) -> None:
    wrong = [level for level in levels if not 0.0 < level <= 1.0]
    if wrong or not levels:
        raise ValueError(f"corruption levels must be in (0, 1], at least one; got {list(levels)}")
    if tokens.ndim != 3 or len(tokens) < 1 or len(keys) != len(tokens):
        raise ValueError(
            f"need tokens [batch, h, w] and one key per image, got tokens {list(tokens.shape)} and "
            f"{len(keys)} keys"
        )
