"""Image tasks that mix and vary what is asked for: images, embeddings and prompts as conditions.

Source: docs/models/paella.md 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paella_jax.families.clip_prior import ClipPriorSampler
from paella_jax.images.read import ImageLike
from paella_jax.pipelines.base import Generation
from paella_jax.pipelines.batches import image_keys, one_per_prompt
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline


def variations(
    pipe: TokenPipeline,
    images: Sequence[ImageLike],
    prompt: str | Condition = "",
    **options: Any,
) -> Generation:
    """New images with the content of one or several images, by their embeddings.

    Raises:
      ImageError, ValueError: unusable images, or a run without an image encoder.
    """
    base = prompt if isinstance(prompt, Condition) else Condition(prompt=prompt)
    pixels = [pipe.read(image) for image in images]
    return pipe.generate([replace(base, images=tuple(pixels))], **options)


def with_prior(
    pipe: TokenPipeline,
    prior: ClipPriorSampler,
    conditions: Sequence[str | Condition],
    *,
    seed: int | Sequence[int] = 0,
    **options: Any,
) -> list[Condition]:
    """Adds to each condition the image embedding a CLIP prior draws for its text.

    Source: docs/models/paella.md 4.3.

    Args:
      pipe: a run with both CLIP towers.
      prior: from `families.clip_prior.load_clip_prior`.
      conditions: texts, or conditions with a text.
      seed: of the prior's draw, one or one per condition: it depends on nothing else of the call.
      **options: num_steps and guidance_scale of the prior.

    Raises:
      ValueError: a run without CLIP, or a prior of another width.
    """
    given = [c if isinstance(c, Condition) else Condition(prompt=c) for c in conditions]
    keys = image_keys(one_per_prompt(seed, len(given), "seed"), 1)
    embeddings = np.asarray(prior(pipe.embed_texts([c.prompt for c in given]), keys, **options))
    pairs = zip(given, embeddings, strict=True)
    return [replace(c, images=(*c.images, embedding)) for c, embedding in pairs]


def interpolate(
    pipe: TokenPipeline,
    first: str | Condition,
    second: str | Condition,
    *,
    frames: int = 8,
    seed: int = 0,
    **options: Any,
) -> Generation:
    """A strip of images from one condition to another, all from the same noise.

    Frame i mixes the two conditions' predictions with weights (1 - a, a), a = i / (frames - 1);
    the ends equal the single conditions' images.
    """
    if frames < 2:
        raise ValueError(f"an interpolation needs at least 2 frames, got {frames}")
    fractions = np.linspace(0.0, 1.0, frames, dtype=np.float32)
    weights = np.stack([1.0 - fractions, fractions], axis=1)
    return pipe.generate([[first, second]] * frames, weights=weights, seed=seed, **options)


def interpolate_images(
    pipe: TokenPipeline,
    first: ImageLike,
    second: ImageLike,
    *,
    prompt: str = "",
    frames: int = 8,
    seed: int = 0,
    **options: Any,
) -> Generation:
    """A strip between two images by spherical interpolation of their embeddings."""
    if frames < 2:
        raise ValueError(f"an interpolation needs at least 2 frames, got {frames}")
    ends = [pipe.embed_images(pipe.read(image)[None])[0] for image in (first, second)]
    path = [slerp(ends[0], ends[1], float(a)) for a in np.linspace(0.0, 1.0, frames)]
    conditions = [Condition(prompt=prompt, images=(vector,)) for vector in path]
    return pipe.generate(conditions, seed=seed, **options)


def slerp(first: np.ndarray, second: np.ndarray, fraction: float) -> np.ndarray:
    """Spherical interpolation of two vectors, lengths interpolated linearly; exact at the ends."""
    if fraction in (0.0, 1.0):
        return second if fraction else first
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    cosine = np.clip(np.dot(first, second) / max(lengths[0] * lengths[1], 1e-12), -1.0, 1.0)
    angle = np.arccos(cosine)
    if np.sin(angle) < 1e-4:
        return ((1.0 - fraction) * first + fraction * second).astype(np.float32)
    length = (1.0 - fraction) * lengths[0] + fraction * lengths[1]
    direction = np.sin((1.0 - fraction) * angle) * first / lengths[0]
    direction = (direction + np.sin(fraction * angle) * second / lengths[1]) / np.sin(angle)
    return (length * direction).astype(np.float32)
