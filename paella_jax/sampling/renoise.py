"""Paella's sampler: predict every token, draw, renoise, repeat (docs/models/paella.md 4.1).

`renoise` is the loop's body; the policies it calls are chosen from the settings before the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.noise.tokens import replace_tokens
from paella_jax.ops.codebook import nearest_code
from paella_jax.sampling.filters import typical_filter
from paella_jax.sampling.guidance import Denoise, without_guidance
from paella_jax.sampling.loop import Loop, run
from paella_jax.sampling.renoise_settings import RenoiseSettings
from paella_jax.sampling.token_loop import (
    FROM_NOISE,
    Course,
    Draw,
    Known,
    Ramps,
    Start,
    Step,
    Vocabulary,
    categorical,
    keys_of_samples,
    level_of,
    make_steps,
    noise_of,
    randomness_of,
    sample_keys_at,
    step_keys,
    with_uniform,
)
from paella_jax.typing import Array

KEYS_PER_STEP = 3  # which tokens are renoised (1), the draw (2), fresh noise (3); 0 is the noise


class Policy(NamedTuple):
    """How a step does each of its parts, chosen from the settings before the scan.

    Attributes:
      denoise: the prediction, guided or not, with atypical tokens filtered or not.
      level: (tokens, step) -> t, what the network is told.
      draw: (logits, tokens, step) -> the drawn tokens.
      source: (tokens, step) -> what renoised tokens become.
      order: (logits, drawn tokens, step) -> float32 [batch, h, w] in [0, 1]; the positions up to
        t_next are renoised.
      hold: puts kept tokens back. The reference does it before renoising, which is the same but for
        "fresh" noise, with which it would lose them.
      shown: (drawn tokens, tokens after the step) -> what a trace keeps.
    """

    denoise: Denoise
    level: Callable[[Array, Step], Array]
    draw: Callable[[Array, Array, Step], Array]
    source: Callable[[Array, Step], Array]
    order: Callable[[Array, Array, Step], Array]
    hold: Callable[[Array], Array]
    shown: Callable[[Array, Array], Array]


def renoise(policy: Policy, tokens: Array, step: Step) -> tuple[Array, Array]:
    """The loop's body: predict every token, draw, renoise some, put kept tokens back."""
    logits = policy.denoise(tokens, policy.level(tokens, step), step.guidance_scale)
    drawn = policy.draw(logits, tokens, step)
    noise, order = policy.source(tokens, step), policy.order(logits, drawn, step)
    renoised, _ = replace_tokens(drawn, noise, order, step.t_next)
    after = policy.hold(jnp.where(step.corrupt, renoised, drawn))
    return after, policy.shown(drawn, after)


def sample(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: RenoiseSettings,
    vocabulary: Vocabulary,
    start: Start = FROM_NOISE,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps.

    Args:
      denoise: guided prediction, see sampling/guidance.py.
      key: PRNG key, or [batch] keys, one per sample, of which alone its randomness comes.
      shape: (batch, h, w).
      settings: see `RenoiseSettings`.
      vocabulary: with a mask the noise is masks everywhere, and only masked tokens are drawn, since
        a network trained with masks predicts nothing useful for visible ones.
      start: what to start from and to keep. Of its image tokens a fraction `t_start` is replaced by
        noise, so that t_start = 1 is the same as starting from noise; its initial tokens are at
        level `t_start`.
      ramps: replaces the settings' temperature and guidance ramps.
      trace: also return the tokens after every step; with a mask before masking again.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [num_steps, batch, h, w].

    Raises:
      ValueError: a setting that makes no sense, or none for a masked network.
    """
    course = settings.course(ramps)
    return run(plan(denoise, key, shape, settings, vocabulary, start, course), trace)


def plan(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: RenoiseSettings,
    vocabulary: Vocabulary,
    start: Start,
    course: Course,
) -> Loop:
    """`sample` before it runs.

    Args:
      denoise: as in `sample`.
      key: as in `sample`.
      shape: as in `sample`.
      settings: or their `program`; what it leaves out is in the course.
      vocabulary: as in `sample`.
      start: as in `sample`.
      course: what differs from step to step; it may be traced.

    Raises:
      ValueError: a setting that makes no sense, or none for a masked network.
    """
    settings.check()
    if vocabulary.mask_token is not None:
        settings.check_masked()
    keys, count = keys_of_samples(key, shape[0]), len(course.t)
    randomness = start.randomness or randomness_of(keys, shape[1:], count, KEYS_PER_STEP)
    fresh, noise = noise_of(vocabulary), randomness.initial
    if noise is None or vocabulary.mask_token is not None:
        noise = fresh(sample_keys_at(keys, 0), shape)
    noise = start.hold(noise)  # then renoising leaves kept tokens alone
    tokens = start.hold(_first_tokens(start, noise, randomness.start_uniform, course.start))
    steps = make_steps(
        course,
        uniform=randomness.uniform,
        draw_keys=step_keys(keys, count, KEYS_PER_STEP, 2),
        fresh_keys=step_keys(keys, count, KEYS_PER_STEP, 3),
    )
    after_step = lambda drawn, after: after
    before_masking = lambda drawn, after: start.hold(drawn)
    bodies = []
    for guided, mode in settings.ranges()[0]:
        policy = Policy(
            denoise=_prediction(denoise, settings, guided),
            level=level_of(vocabulary.mask_token, start.known),
            draw=_draw(mode, settings, vocabulary, start.draw),
            source=_source(settings.renoise_mode, noise, fresh),
            order=_order(settings.renoise_choice, start.known),
            hold=start.hold,
            shown=after_step if vocabulary.mask_token is None else before_masking,
        )
        bodies.append(with_uniform(partial(renoise, policy), start.randomness, shape[1:]))
    return Loop(tokens.astype(jnp.int32), steps, bodies, course.edges)


def _prediction(denoise: Denoise, settings: RenoiseSettings, guided: bool) -> Denoise:
    predict = denoise if guided else without_guidance(denoise)
    mass, minimum = settings.typical_mass, settings.typical_min_tokens
    if mass is None:
        return predict
    return lambda tokens, t, scale: typical_filter(predict(tokens, t, scale), mass, minimum)


def _draw(
    mode: str, settings: RenoiseSettings, vocabulary: Vocabulary, given: Draw | None
) -> Callable[[Array, Array, Step], Array]:
    """One step's draw: in a segment's `mode`, or as `given`; with a mask of masked tokens only."""
    codebook, mask_token = vocabulary.codebook, vocabulary.mask_token
    if given is not None:
        draw = _tempered(given)
    elif mode == "argmax":
        # Of the logits as they are: dividing by the temperature can round two of them together.
        draw = lambda logits, step: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    elif mode == "categorical":
        draw = _tempered(categorical(settings.draw_implementation))
    elif codebook is None:
        raise ValueError("the 'quantize' draw needs the tokenizer's codebook")
    else:
        soft = lambda logits: jax.nn.softmax(logits, axis=-1) @ codebook
        draw = _tempered(lambda number, logits, keys: nearest_code(soft(logits), codebook))
    if mask_token is None:
        return lambda logits, tokens, step: draw(logits, step)
    return lambda logits, tokens, step: jnp.where(tokens == mask_token, draw(logits, step), tokens)


def _tempered(draw: Draw) -> Callable[[Array, Step], Array]:
    return lambda logits, step: draw(step.number, logits / step.temperature, step.draw_keys)


def _source(
    mode: str, noise: Array, draw_noise: Callable[[Any, tuple[int, ...]], Array]
) -> Callable[[Array, Step], Array]:
    def initial(tokens: Array, step: Step) -> Array:
        return noise

    def previous(tokens: Array, step: Step) -> Array:
        return tokens

    def fresh(tokens: Array, step: Step) -> Array:
        return draw_noise(step.fresh_keys, tokens.shape)

    return {"initial": initial, "previous": previous, "fresh": fresh}[mode]


def _order(choice: str, known: Known | None) -> Callable[[Array, Array, Step], Array]:
    def random(logits: Array, drawn: Array, step: Step) -> Array:
        return step.uniform

    def confidence(logits: Array, drawn: Array, step: Step) -> Array:
        return confidence_order(logits, drawn, None if known is None else known.generate)

    return {"random": random, "confidence": confidence}[choice]


def confidence_order(
    logits: Array, drawn: Array, generate: Array | np.ndarray | None = None
) -> Array:
    """Each position's rank by the probability of its drawn token, least confident first.

    Args:
      logits: [batch, h, w, codes].
      drawn: int [batch, h, w].
      generate: bool [batch, h, w], False where a token is kept: only the others are ranked.

    Returns:
      float32 [batch, h, w]: ranks from 1 over their number, so that a fraction t of them is at most
      t; it replaces the uniform map. Above 1 for kept tokens.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, drawn[..., None], -1)[..., 0]
    confidence = chosen - jax.nn.logsumexp(logits, axis=-1)
    count = jnp.full((drawn.shape[0], 1), confidence[0].size)
    if generate is not None:
        confidence = jnp.where(generate, confidence, jnp.inf)
        count = jnp.maximum(generate.sum((1, 2))[:, None], 1)
    flat = confidence.reshape(drawn.shape[0], -1)
    ranks = 1 + jnp.argsort(jnp.argsort(flat, axis=-1), axis=-1)
    return (ranks / count).astype(jnp.float32).reshape(drawn.shape)


def _first_tokens(start: Start, noise: Array, uniform: Array | None, t_start: Any) -> Array:
    """Tokens at level `t_start`."""
    if start.image_tokens is not None:
        if start.initial_tokens is not None or uniform is None:
            raise ValueError("image_tokens exclude initial_tokens and need start_uniform")
        return replace_tokens(start.image_tokens, noise, uniform, t_start)[0]
    return noise if start.initial_tokens is None else jnp.asarray(start.initial_tokens)
