"""Mask-free editing: an image drawn over by a new prompt, a few tokens at a time.

Source: docs/models/muse.md 1.7.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paella_jax.images.read import ImageLike
from paella_jax.pipelines.editing import encode_image, keep_unmasked, size_of
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import Generation, TokenPipeline
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.schedule import first_and_last

Range = float | tuple[float, float]


def edit(
    pipe: TokenPipeline,
    image: ImageLike,
    prompt: str | Condition,
    *,
    mask: ImageLike | None = None,
    rounds: int = 100,
    share: float = 0.08,
    top_k: int = 3,
    guidance_scale: Range = 4.0,
    temperature: Range = 1.0,
    frames: int = 0,
    **options: Any,
) -> Generation:
    """Changes an image towards a prompt, keeping what already fits it.

    Every round draws a random share of the tokens again, given the others and the prompt. A
    network trained with masks sees these tokens masked, one trained with random tokens sees random
    ones. More rounds, or a larger share, change more.

    Args:
      pipe: from `paella_jax.load`, of any cell.
      image: of a size that the network draws.
      prompt: describes the edited picture.
      mask: where the image may change (white or True); None is everywhere.
      rounds: number of rounds.
      share: of the tokens that may change, drawn again in a round.
      top_k: draw among this many most probable tokens.
      guidance_scale: 1 switches guidance off; a pair ramps from the first to the last round.
      temperature: of the draw; a pair ramps.
      frames: intermediate states in the result's `trace`, evenly spaced, the last one being the
        result.
      **options: of `TokenPipeline.generate`: seed, num_images_per_prompt, negative_prompt ...

    Raises:
      ImageError, ValueError: unusable image, mask or setting.
    """
    settings = resample_settings(rounds, share, top_k, guidance_scale, temperature, frames)
    if mask is None:
        known, tokens = None, encode_image(pipe, image)[None]
    else:
        known = keep_unmasked(pipe, image, mask)
        tokens = np.asarray(known.tokens)
    return pipe.generate(
        [prompt],
        image_tokens=tokens,
        known=known,
        resampling=settings,
        trace=frames > 0,
        **size_of(pipe, tokens),
        **options,
    )


def resample_settings(
    rounds: int,
    share: float,
    top_k: int,
    guidance_scale: Range,
    temperature: Range,
    frames: int,
) -> ResampleSettings:
    """Checked settings; frames 0 is none, and a number stands for the pair of itself.

    Raises:
      ValueError: a setting that makes no sense.
    """
    settings = ResampleSettings(
        rounds=rounds,
        share=share,
        top_k=top_k,
        guidance_scale=first_and_last("guidance_scale", guidance_scale),
        temperature=first_and_last("temperature", temperature),
        frames=frames or None,
    )
    settings.check()
    return settings
