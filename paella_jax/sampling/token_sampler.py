"""Which sampler draws: corruption (random tokens or masks) x what is corrupted again.

| corruption | "random" positions         | "confidence": the least confident positions   |
|------------|----------------------------|-----------------------------------------------|
| uniform    | renoise.py (Paella's)      | renoise.py with renoise_choice="confidence"   |
| mask       | renoise.py with a mask id  | parallel_decode.py (MUSE's)                   |

The corruption is the training's; the choice of positions is free at every call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings, parallel_decode
from paella_jax.sampling.renoise import (
    Known,
    Ramps,
    RenoiseSettings,
    check_masked,
    sample,
)
from paella_jax.typing import Array

CORRUPTIONS = ("uniform", "mask")
SAMPLERS = ("random", "confidence")
TokenSettings = RenoiseSettings | ParallelDecodeSettings
PAIRS = ("temperature", "guidance_scale", "choice_temperature")  # (first, last) step


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError where a value is none of the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def token_settings(
    corruption: str, sampler: str, base: Mapping[str, Any], changes: Mapping[str, Any]
) -> TokenSettings:
    """The settings of a cell's sampler.

    Args:
      corruption: what the network was trained with, "uniform" or "mask".
      sampler: what is corrupted again, "random" or "confidence".
      base: of the config; fields of other samplers are left out.
      changes: replace them; None keeps the base. Temperatures and guidance take one number or a
        (first, last) pair.

    Raises:
      ValueError: an unknown name, a field the sampler does not have, or a value out of range.
    """
    check_choice("cell.corruption", corruption, CORRUPTIONS)
    check_choice("cell.sampler", sampler, SAMPLERS)
    masked_confidence = (corruption, sampler) == ("mask", "confidence")
    kind: Any = ParallelDecodeSettings if masked_confidence else RenoiseSettings
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(changes) - fields)
    if unknown:
        raise ValueError(
            f"sampling by {sampler} positions of a network trained with {corruption} corruption "
            f"has no setting {', '.join(unknown)}; it has {', '.join(sorted(fields))}"
        )
    chosen = {name: value for name, value in base.items() if name in fields}
    if (corruption, sampler) == ("uniform", "confidence"):
        chosen["renoise_choice"] = "confidence"
    chosen |= {name: value for name, value in changes.items() if value is not None}
    settings = kind(**{name: _pair(name, value) for name, value in chosen.items()})
    settings.check()
    if corruption == "mask" and isinstance(settings, RenoiseSettings):
        check_masked(settings)
    return settings


def _pair(name: str, value: Any) -> Any:
    if name not in PAIRS:
        return value
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}={value!r} must be one number or a (first, last) pair")
    return tuple(float(x) for x in pair)


def start_from_image(settings: TokenSettings, strength: float) -> dict[str, Any]:
    """The setting that starts a sampler from an image of which a share `strength` is corrupted."""
    is_decode = isinstance(settings, ParallelDecodeSettings)
    return {"strength": strength} if is_decode else {"t_start": strength}


def starts_from_noise(settings: TokenSettings) -> bool:
    """Whether the first step corrupts everything, so that no image is needed."""
    if isinstance(settings, ParallelDecodeSettings):
        return settings.strength == 1.0
    return settings.t_start == 1.0


def draw_tokens(
    denoise: Denoise,
    keys: Array,
    grid: tuple[int, int],
    settings: TokenSettings,
    *,
    codebook_size: int,
    mask_token: int | None,
    image_tokens: Array | None = None,
    known: Known | None = None,
    codebook: Array | None = None,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps with the sampler that the settings belong to.

    Args:
      denoise: guided prediction, see guidance.py.
      keys: [batch] PRNG keys.
      grid: (h, w).
      settings: from `token_settings`.
      codebook_size: the vocabulary.
      mask_token: the mask's id, None for uniform corruption.
      image_tokens: clean tokens to start from.
      known: tokens to keep and where to draw.
      codebook: [codes, C], for the "quantize" draw.
      ramps: replaces the settings' temperature and guidance.
      trace: also return the complete tokens that every step predicted.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [steps, batch, h, w].
    """
    shape = (keys.shape[0], *grid)
    shared: dict[str, Any] = {
        "image_tokens": image_tokens,
        "known": known,
        "ramps": ramps,
        "trace": trace,
        "mask_token": mask_token,
    }
    if isinstance(settings, RenoiseSettings):
        return sample(
            denoise, keys, shape, settings, codebook_size=codebook_size, codebook=codebook, **shared
        )
    out = parallel_decode(denoise, keys, shape, settings, **shared)
    return (out[0], out[1].predicted) if trace else out
