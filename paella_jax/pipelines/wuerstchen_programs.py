"""Würstchen's stages as compiled programs, and their settings (docs/models/wuerstchen.md 5.5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.sampling.diffusion import DDPMSettings, GaussianStart, sample, segment_times
from paella_jax.sampling.guidance import guide
from paella_jax.sampling.schedule import first_and_last
from paella_jax.typing import Array, Tree

Scale = float | tuple[float, float] | None


def stage_c_settings(
    sampler: ConfigDict,
    num_steps: int | None = None,
    guidance_scale: Scale = None,
    stepper: str | None = None,
    strength: float = 1.0,
) -> DDPMSettings:
    """Stage C's settings: the run's time points, with fewer steps or from level `strength` on.

    Raises:
      ValueError: a setting that makes no sense.
    """
    steps = tuple(sampler.segments)
    if num_steps is not None:
        steps = spread_steps(num_steps, steps)
    edges = sampler.edges if len(steps) > 1 else (sampler.edges[0], sampler.edges[-1])
    settings = DDPMSettings(
        time_points=segment_times(edges, steps),
        guidance_scale=_scale(guidance_scale, sampler.guidance_scale),
        stepper=stepper or sampler.stepper,
        t_start=strength,
    )
    settings.check()
    return settings


def stage_b_settings(
    sampler: ConfigDict,
    num_steps: int | None = None,
    guidance_scale: Scale = None,
    stepper: str | None = None,
) -> DDPMSettings:
    """Stage B's settings. Raises ValueError for a setting that makes no sense."""
    settings = DDPMSettings(
        num_steps=sampler.num_steps if num_steps is None else num_steps,
        guidance_scale=_scale(guidance_scale, sampler.guidance_scale),
        stepper=stepper or sampler.stepper,
    )
    settings.check()
    return settings


def _scale(given: Scale, default: float) -> float | tuple[float, float]:
    if given is None:
        return default
    if not isinstance(given, tuple | list):
        return float(given)
    refusal = "{name} {value!r} must be one number or a pair (first, last)"
    return first_and_last("guidance_scale", given, refusal)


def stage_b_options(given: dict[str, Any]) -> dict[str, Any]:
    """`stage_b_NAME` -> NAME. Raises ValueError for an option that does not exist."""
    known = ("stage_b_num_steps", "stage_b_guidance_scale", "stage_b_stepper")
    for name in given:
        if name not in known:
            raise ValueError(f"there is no option {name!r}; Stage B's are {', '.join(known)}")
    return {name.removeprefix("stage_b_"): value for name, value in given.items()}


def spread_steps(num_steps: int, segments: Sequence[int]) -> tuple[int, ...]:
    """`num_steps` over ranges in the proportion of `segments`; one range if they are too few.

    Raises:
      ValueError: num_steps below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if num_steps < len(segments):
        return (num_steps,)
    total = sum(segments)
    counts = [max(1, round(num_steps * segment / total)) for segment in segments[1:]]
    return (max(1, num_steps - sum(counts)), *counts)


def draw_c(
    networks: StageCNetworks,
    stage_b: StageBNetworks,
    weights: tuple[Tree, Tree],
    request: Any,
    *,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
    trace: bool,
) -> tuple[Array, ...]:
    """Stage C as one program: texts -> latents in raw scale (and, with `trace`, of every step)."""
    keys, texts, negatives, start = request
    params, frozen = weights
    count = keys.shape[0]
    predict = _predictor(networks, params, frozen)
    out = sample(
        guide(predict(texts, count), predict(negatives, count)),
        _stage_keys(keys, 0),
        (count, *shape),
        settings,
        schedule=networks.schedule,
        start=GaussianStart(image=None if start is None else stage_b.to_stage_c(start)),
        trace=trace,
    )
    if not trace:
        return (stage_b.from_stage_c(out),)
    latents, history = out
    return stage_b.from_stage_c(latents), stage_b.from_stage_c(jnp.moveaxis(history, 0, 1))


def draw_b(
    networks: StageBNetworks,
    weights: tuple[Tree, Tree],
    request: Any,
    *,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
) -> Array:
    """Stage B as one program: the compressor's latents -> Stage A's.

    The unconditional branch has the negative text and no guide, as the reference.
    """
    keys, latents_c, texts, negatives = request
    params, frozen = weights
    count = keys.shape[0]
    predict = _predictor(networks, params, frozen)
    return sample(
        guide(predict(texts, count, latents_c), predict(negatives, count)),
        _stage_keys(keys, 1),
        (count, *shape),
        settings,
        schedule=networks.schedule,
    )


def _predictor(networks: StageBNetworks | StageCNetworks, params: Tree, frozen: Tree) -> Any:
    """(ids and mask, batch size, guide) -> a noise prediction, its text encoded once."""

    def predictor(texts: Any, count: int, guide_latents: Array | None = None) -> Any:
        ids, mask = (None, None) if texts is None else texts
        cond = networks.text(params, frozen, ids, mask, count)
        cond = dataclasses.replace(cond, guide=guide_latents)
        return lambda x, t: networks.noise(params, x, t, cond)

    return predictor


def _stage_keys(keys: Array, stage: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys)
