"""The best of several images of a prompt, by a score; CLIP's or whatever has its form.

MUSE shows the best of 16 by CLIP score (docs/models/muse.md 1.6). PickScore is a CLIP with other
weights, so that its folder works as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.encoders.clip_transformer import ClipOutput
from paella_jax.encoders.preprocess import clip_preprocess
from paella_jax.encoders.published import load_clip_text_folder, load_clip_vision_folder
from paella_jax.encoders.text import ClipTokenizer
from paella_jax.typing import Array, Tree

# (images uint8 [N, height, width, 3], N prompts) -> float [N]; the more, the better they fit.
Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]


def clip_score(folder: str | Path) -> Score:
    """The cosine between an image and its prompt, times 100, by the CLIP model in a folder.

    Args:
      folder: a Hugging Face CLIP with both towers and their projections, and its tokenizer.

    Raises:
      ConversionError, FileNotFoundError: no such folder, or not all of that in it.
      ValueError: towers that do not belong together.
    """
    text, text_weights = load_clip_text_folder(folder)
    vision, vision_weights = load_clip_vision_folder(folder)
    if text.projection is None or text.projection != vision.projection:
        raise ValueError(
            f"{folder}: the towers project to {text.projection} and {vision.projection}; a score "
            "needs a CLIP with both projections of one width"
        )
    on_device = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    weights = (on_device(text_weights), on_device(vision_weights))
    tokenizer = ClipTokenizer(folder, text.max_length, truncate=True)

    @jax.jit
    def cosines(weights: tuple[Tree, Tree], images: Array, ids: Array) -> Array:
        pixels = clip_preprocess(images.astype(jnp.float32) / 255.0, vision.image_size)
        seen = _direction(vision.apply({"params": weights[1]}, pixels))
        meant = _direction(text.apply({"params": weights[0]}, ids))
        return 100.0 * (seen * meant).sum(-1)

    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        ids, _ = tokenizer(list(prompts))
        return np.asarray(cosines(weights, images, ids))

    return score


def _direction(output: ClipOutput) -> Array:
    pooled = output.embedding
    assert pooled is not None  # the folder's projections were checked
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def best(score: Score, images: np.ndarray, prompts: Sequence[str]) -> tuple[int, float]:
    """The number of the image with the highest score, and that score.

    Raises:
      ValueError: the scores are not one finite number per image.
    """
    scores = np.asarray(score(images, prompts), np.float64)
    if scores.shape != (len(images),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the score gave {scores.tolist()} for {len(images)} images; it must give one finite "
            "number each"
        )
    number = int(scores.argmax())
    return number, float(scores[number])
