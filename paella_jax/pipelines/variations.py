"""Image tasks that mix and vary what is asked for: images, embeddings and prompts as conditions.

Source: docs/models/paella.md 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from paella_jax.families.clip_prior import ClipPriorSampler
from paella_jax.images.read import ImageLike
from paella_jax.pipelines.base import Generation
from paella_jax.pipelines.batches import image_keys, one_per_prompt
from paella_jax.pipelines.presets import between_options, needs_tokens
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline

PARTS = ("columns", "rows")  # along which `mix_parts` divides an image


def variations(
    pipe: TokenPipeline,
    images: Sequence[ImageLike],
    prompt: str | Condition = "",
    **options: Any,
) -> Generation:
    """New images with the content of one or several images, by their embeddings.

    Raises:
      ImageError, ValueError: unusable images, or a run without an image encoder.

    Example:
      >>> variations(pipe, ["photo.png"], num_images_per_prompt=4).images
    """
    needs_tokens(pipe, "variations", two_scales=True)
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

    Example:
      >>> pipe(with_prior(pipe, load_clip_prior("PRIOR_RUN"), ["a red circle"]))
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
    by: str | None = None,
    negative_prompt: str | None = "",
    **options: Any,
) -> Generation:
    """A strip of images from one condition to another, all from the same noise.

    Frame i is a = i / (frames - 1) of the way. The ends equal the single conditions' images, drawn
    with the same options.

    Args:
      pipe: from `paella_jax.load`.
      first: where the strip begins.
      second: where it ends.
      frames: at least 2.
      seed: of all of them.
      by: "embeddings" interpolates what the encoders make of the two, word by word, so that every
        place of the image is asked for the same; "predictions" mixes the two predictions with
        weights (1 - a, a), of which places follow one or the other. None is embeddings, but where
        there are labels or maps, which have no embeddings.
      negative_prompt: what to steer away from.
      **options: of `TokenPipeline.generate`; the guidance is `between_options` (presets.py).

    Raises:
      PromptError, ValueError: fewer frames, another `by`, or what `generate` refuses.

    Example:
      >>> interpolate(pipe, "a red circle", "a blue square", frames=5).images
    """
    needs_tokens(pipe, "interpolate", two_scales=True)
    check_frames(frames)
    fractions = np.linspace(0.0, 1.0, frames, dtype=np.float32)
    options = between_options(pipe) | _given(options)
    by = by or ("predictions" if _has_classes(first, second) else "embeddings")
    if by == "predictions":
        weights = np.stack([1.0 - fractions, fractions], axis=1)
        options |= {"weights": weights, "negative_prompt": negative_prompt}
        return pipe.generate([[first, second]] * frames, seed=seed, **options)
    if by != "embeddings":
        raise ValueError(f"by must be embeddings or predictions, got {by!r}")
    ends = pipe.embed([first, second], negative_prompt)
    between = [ends[0].towards(ends[1], float(fraction)) for fraction in fractions]
    return pipe.generate(between[0].and_then(*between[1:]), seed=seed, **options)


def _has_classes(*conditions: str | Condition) -> bool:
    asked = [c for c in conditions if isinstance(c, Condition)]
    return any(c.label is not None or c.segmentation is not None for c in asked)


def mix_parts(
    pipe: TokenPipeline,
    conditions: Sequence[str | Condition],
    *,
    along: str = "columns",
    height: int | None = None,
    width: int | None = None,
    **options: Any,
) -> Generation:
    """One image of several conditions, each in its own part of it.

    Weights that are the same everywhere make captions that contradict each other compete in every
    place: one of them wins, or nothing is drawn. Here each condition alone decides its part, and
    sees the others' tokens beside it.

    Args:
      pipe: from `paella_jax.load`.
      conditions: at least two; each describes a whole image, of which its part is drawn.
      along: "columns" puts the parts side by side, "rows" one above the other.
      height: pixels; default the training size.
      width: pixels; default the training size.
      **options: of `TokenPipeline.generate`.

    Raises:
      PromptError, ValueError: fewer than two conditions, more than there are tokens, or another
        `along`.

    Example:
      >>> mix_parts(pipe, ["a red circle at the left", "a blue square at the right"]).images
    """
    needs_tokens(pipe, "mix_parts", two_scales=True)
    # Of two scales the base's map has the parts; it has one size.
    grid = getattr(pipe, "base", pipe).sizes.grid(height, width)
    weights = part_weights(len(conditions), grid, along)
    options |= {"height": height, "width": width}
    return pipe.generate([list(conditions)], weights=weights, **options)


def part_weights(count: int, grid: tuple[int, int], along: str) -> np.ndarray:
    """Mixing weights float32 [1, count, h, w]: 1 in a condition's own part of the map, else 0.

    Raises:
      ValueError: another `along`, or more parts than tokens.
    """
    if along not in PARTS:
        raise ValueError(f"parts lie along columns or rows, got {along!r}")
    axis = 0 if along == "rows" else 1
    if not 2 <= count <= grid[axis]:
        raise ValueError(f"{count} parts along {grid[axis]} {along}; give 2 to {grid[axis]}")
    owner = np.arange(grid[axis]) * count // grid[axis]
    whole = np.broadcast_to(owner[:, None] if axis == 0 else owner[None], grid)
    return (whole[None] == np.arange(count)[:, None, None]).astype(np.float32)[None]


def check_frames(frames: int) -> None:
    """Raises ValueError for a strip of fewer than two frames."""
    if frames < 2:
        raise ValueError(f"an interpolation needs at least 2 frames, got {frames}")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not left to the defaults."""
    return {name: value for name, value in options.items() if value is not None}


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
    """A strip between two images by spherical interpolation of their embeddings.

    Example:
      >>> interpolate_images(pipe, "first.png", "second.png", frames=5).images
    """
    needs_tokens(pipe, "interpolate_images")
    check_frames(frames)
    options = between_options(pipe) | _given(options)
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
