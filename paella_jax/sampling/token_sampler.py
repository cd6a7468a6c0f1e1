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
from paella_jax.sampling.loop import Body, Loop, run
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings
from paella_jax.sampling.parallel_decode import plan as plan_decoding
from paella_jax.sampling.renoise import plan
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.schedule import check_types, first_and_last
from paella_jax.sampling.token_loop import FROM_NOISE, Course, Ramps, Start, Vocabulary
from paella_jax.typing import Array

CORRUPTIONS = ("uniform", "mask")
SAMPLERS = ("random", "confidence")
TokenSettings = RenoiseSettings | ParallelDecodeSettings
PAIRS = ("temperature", "guidance_scale", "choice_temperature")  # (first, last) step


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises ValueError where a value is none of the known ones."""
    if not isinstance(value, str) or value not in known:
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
    chosen |= {name: first_and_last(name, chosen[name]) for name in PAIRS if name in chosen}
    settings = kind(**chosen)
    check_types(settings)
    settings.check()
    if corruption == "mask" and isinstance(settings, RenoiseSettings):
        settings.check_masked()
    return settings


def start_from_image(settings: TokenSettings, strength: float) -> dict[str, Any]:
    """The setting that starts a sampler from an image of which a fraction is corrupted."""
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
    shape: tuple[int, int, int],
    settings: TokenSettings,
    vocabulary: Vocabulary,
    start: Start = FROM_NOISE,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps with the sampler that the settings belong to.

    Args:
      denoise: guided prediction, see guidance.py.
      keys: [batch] PRNG keys.
      shape: (batch, h, w).
      settings: from `token_settings`.
      vocabulary: of the network.
      start: what to start from and to keep.
      ramps: replaces the settings' temperature and guidance.
      trace: also return the complete tokens that every step predicted.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [steps, batch, h, w].
    """
    course = settings.course(ramps)
    return run(plan_tokens(denoise, keys, shape, settings, vocabulary, start, course), trace)


def plan_tokens(
    denoise: Denoise,
    keys: Array,
    shape: tuple[int, int, int],
    settings: TokenSettings,
    vocabulary: Vocabulary,
    start: Start,
    course: Course,
) -> Loop:
    """`draw_tokens` before it runs; every step shows the complete tokens that it predicted.

    Args:
      denoise: as in `draw_tokens`.
      keys: as in `draw_tokens`.
      shape: as in `draw_tokens`.
      settings: or their `program`; what it leaves out is in the course.
      vocabulary: as in `draw_tokens`.
      start: as in `draw_tokens`.
      course: what differs from step to step; it may be traced.
    """
    if isinstance(settings, RenoiseSettings):
        return plan(denoise, keys, shape, settings, vocabulary, start, course)
    mask_token: Any = vocabulary.mask_token
    loop = plan_decoding(denoise, keys, shape, settings, mask_token, start, course)

    def predicted(body: Body) -> Body:
        complete = lambda after, visited: (after, visited.predicted)
        return lambda tokens, step: complete(*body(tokens, step))

    return loop._replace(bodies=[predicted(body) for body in loop.bodies])
