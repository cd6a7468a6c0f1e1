"""Würstchen's stages as compiled programs, and their settings (docs/models/wuerstchen.md 5.5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.prepared import prepare
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.ops.batch_axis import batch_shards
from paella_jax.pipelines.batches import Numbered
from paella_jax.sampling.diffusion import FROM_UNIT_NOISE, GaussianStart, KnownValues, plan
from paella_jax.sampling.diffusion_settings import DDPMSettings, DiffusionCourse, segment_times
from paella_jax.sampling.guidance import Denoise, Predict, guide, guide_jointly, runs_jointly
from paella_jax.sampling.loop import Loop, advance, padded, run
from paella_jax.sampling.schedule import first_and_last
from paella_jax.training.pulse import Program
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


class StageRequest(NamedTuple):
    """What a batch of latents is made from; arrays with the images in front.

    Attributes:
      images: whose keys all randomness comes from; each stage has its own of them.
      texts: ids and mask, or what the encoder made of them; None without a text.
      negatives: the same of what guidance leads away from.
      guide: Stage C's latents in raw scale, of Stage B.
      start: latents in raw scale that Stage C starts from, or keeps.
      generate: float32 [batch, h, w, 1], 1 where Stage C draws; None draws everywhere.
    """

    images: Numbered
    texts: Any
    negatives: Any
    guide: Any = None
    start: Any = None
    generate: Any = None


def steps_of(
    program: Program, weights: Tree, request: StageRequest, settings: DDPMSettings, shape: Any
) -> Callable[..., Any]:
    """A stage's sampler with all it needs but where it stands and how far it goes."""
    course, own = padded(settings.course()), settings.program()
    return partial(program, weights, request, course, settings=own, shape=shape)


def encode_texts(
    networks: StageBNetworks | StageCNetworks, weights: tuple[Tree, Tree], request: StageRequest
) -> StageRequest:
    """A request with texts as the networks take them; those that are so already stay."""
    params, frozen = weights

    def encoded(texts: Any) -> Any:
        if isinstance(texts, Conditioning):
            return texts
        ids, mask = (None, None) if texts is None else texts
        return networks.text(params, frozen, ids, mask, request.images.seeds.shape[0])

    texts, negatives = encoded(request.texts), encoded(request.negatives)
    return request._replace(texts=texts, negatives=negatives)


def plan_c(
    networks: StageCNetworks,
    stage_b: StageBNetworks,
    weights: tuple[Tree, Tree],
    request: StageRequest,
    course: DiffusionCourse,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
) -> Loop:
    """Stage C: encoded texts -> latents in its own scale."""
    image: Any = None if request.start is None else stage_b.to_stage_c(request.start)
    known = None if request.generate is None else KnownValues(image, request.generate)
    return plan(
        _guided(networks.stage_c, weights[0]["stage_c"], request, shape),
        _stage_keys(request, 0),
        (request.images.seeds.shape[0], *shape),
        settings,
        networks.schedule,
        GaussianStart(image=image, known=known),
        course,
    )


def plan_b(
    networks: StageBNetworks,
    weights: tuple[Tree, Tree],
    request: StageRequest,
    course: DiffusionCourse,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
) -> Loop:
    """Stage B: encoded texts and the compressor's latents -> Stage A's.

    The unconditional branch has the negative text and no guide, as the reference.
    """
    return plan(
        _guided(networks.stage_b, weights[0]["stage_b"], request, shape),
        _stage_keys(request, 1),
        (request.images.seeds.shape[0], *shape),
        settings,
        networks.schedule,
        FROM_UNIT_NOISE,
        course,
    )


def advance_stage(
    plan_stage: Callable[..., Loop],
    weights: tuple[Tree, Tree],
    request: StageRequest,
    course: DiffusionCourse,
    reached: Any,
    span: tuple[Array, Array],
    *,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
) -> Any:
    """Some steps of a batch: the function that a pipeline compiles, of either stage."""
    return advance(plan_stage(weights, request, course, settings, shape), reached, *span)


def raw_latents(
    stage_b: StageBNetworks, latents: Array, start: Array | None, generate: Array | None
) -> Array:
    """Stage C's latents in the compressor's scale, with those that are kept put back.

    The last step may begin at a high noise level, so that it does not leave them as they are.
    """
    raw = stage_b.from_stage_c(latents)
    if generate is None or start is None:
        return raw
    return raw * generate + start * (1.0 - generate)


def empty_state(
    count: int, shape: tuple[int, int, int], settings: DDPMSettings
) -> tuple[tuple[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]:
    """What a loop has before its first step, to be thrown away (`advance`)."""
    empty = np.zeros((count, *shape), np.float32)
    return (empty, empty if settings.stepper == "dpm++" else None), (empty, empty)


def draw_stage(
    plan_stage: Callable[..., Loop],
    networks: StageBNetworks | StageCNetworks,
    weights: tuple[Tree, Tree],
    request: StageRequest,
    settings: DDPMSettings,
    shape: tuple[int, int, int],
) -> Array:
    """Texts -> latents of a stage, in its own scale: a pipeline's programs as one."""
    request = encode_texts(networks, weights, request)
    return draw_encoded(plan_stage(weights, request, settings.course(), settings, shape))


def draw_encoded(plan_of_stage: Loop) -> Array:
    """All steps of a stage: its latents, in its own scale."""
    return run(plan_of_stage, False)[0]


def _guided(
    module: StageB | StageC, params: Tree, request: StageRequest, shape: tuple[int, int, int]
) -> Denoise:
    """The guided noise prediction; only the conditional one sees the guide."""
    count = request.images.seeds.shape[0]

    def predict(cond: Conditioning) -> Predict:
        text: Any = cond.text
        x = jnp.zeros((len(text), *shape))
        made = prepare(module.apply, params, x, x[:, 0, 0, 0], cond)
        return lambda x, t: module.apply(made, x, t, cond)

    texts, negatives = request.texts, request.negatives
    conditional = predict(dataclasses.replace(texts, guide=request.guide))
    alike = request.guide is None and jax.tree.map(jnp.shape, texts) == jax.tree.map(
        jnp.shape, negatives
    )
    if alike and runs_jointly(None, count * shape[0] * shape[1] / batch_shards()):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), texts, negatives)
        return guide_jointly(conditional, predict(both))
    return guide(conditional, predict(negatives))


def _stage_keys(request: StageRequest, stage: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, stage))(request.images.keys())
