"""What image tasks use where a call says nothing: each follows the settings of the run itself."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_sampler import TokenSettings, start_from_image

STRENGTH = 0.6  # of an image without a mask


def needs_tokens(pipe: Any, task: str, two_scales: bool = False) -> None:
    """Raises ValueError where an image task is asked of a kind of pipeline that lacks it.

    Args:
      pipe: from `paella_jax.load`.
      task: its function's name.
      two_scales: whether a base with its super-resolution can do it as well.
    """
    of_tokens = getattr(pipe, "beside", "tokens") == "tokens"
    if of_tokens and (two_scales or not hasattr(pipe, "base")):
        return
    kinds = "TokenPipeline or TwoScalePipeline" if two_scales else "TokenPipeline"
    raise ValueError(
        f"{task} is a task of a {kinds}, not of a {type(pipe).__name__}; call the pipeline itself "
        "with image, mask and strength"
    )


def start_options(config: ConfigDict, settings: TokenSettings, strength: float) -> dict[str, Any]:
    """Sampler settings that start from an image of which a fraction is corrupted.

    Where captions say everything, as the embedded data's do, a prompt at the run's guidance draws
    its own image at any strength. A run with `sampler.image_guidance` (low, high) is therefore
    guided by low + (high - low) * strength below a strength of 1. Guidance below 1 mixes in what
    the network makes of the image without the prompt.

    Args:
      config: the run's.
      settings: of the sampler.
      strength: fraction of the tokens corrupted at the start.

    Returns:
      Options of `generate`; a guidance_scale only where the run says so.
    """
    start = start_from_image(settings, strength)
    ends = config.sampler.get("image_guidance")
    if ends is None or strength >= 1.0:
        return start
    low, high = ends
    return start | {"guidance_scale": float(low + (high - low) * strength)}


def between_options(pipe: Any) -> dict[str, Any]:
    """Options of `generate` for images between two conditions.

    A run with `sampler.image_guidance` goes from its guidance to the lower of the two numbers: what
    is left undecided between the two is decided by the network alone, the same everywhere.
    """
    pipe = getattr(pipe, "base", pipe)  # of two scales the one that draws
    ends = pipe.config.sampler.get("image_guidance")
    return {} if ends is None else {"guidance_scale": (pipe.settings().guidance_scale[0], ends[0])}


def edit_settings(pipe: Any, **own: Any) -> ResampleSettings:
    """Mask-free editing with MUSE's rounds and share, and what the run samples well with.

    Guidance and temperature are those of the sampler's last step: a round sees an image that is
    nearly finished. Higher ones leave wrong tokens behind (docs/results.md 3).

    Args:
      pipe: a `TokenPipeline`, or one of two scales, whose base edits.
      **own: of `ResampleSettings`, instead.

    Raises:
      ValueError: a setting that makes no sense.
    """
    sampler = getattr(pipe, "base", pipe).settings()
    followed = {
        name: (getattr(sampler, name)[1],) * 2 for name in ("guidance_scale", "temperature")
    }
    settings = ResampleSettings(**(followed | own))
    settings.check()
    return settings
