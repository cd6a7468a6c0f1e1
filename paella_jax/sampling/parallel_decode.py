"""MUSE's sampler: predict every token, keep the most confident, mask the rest, repeat.

It is aMUSEd's scheduler (docs/models/muse.md 2.6) inside the frame of token_loop.py. Known tokens
never change; after the last step nothing is masked.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from paella_jax.noise.masking import apply_mask, mask_randomly
from paella_jax.sampling.guidance import Denoise, without_guidance
from paella_jax.sampling.loop import Loop, run
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.sampling.token_loop import (
    FROM_NOISE,
    Course,
    LoopSettings,
    Ramps,
    Start,
    Step,
    categorical,
    keys_of_samples,
    level_of,
    make_steps,
    randomness_of,
    step_keys,
    with_uniform,
)
from paella_jax.typing import Array

SCHEDULES = ("cosine", "linear", "power")
KEYS_PER_STEP = 2  # the token draw (0), the choice of what to mask (1)
SMALLEST = 1e-20  # where the reference clips probabilities and uniform draws
KNOWN_CONFIDENCE = float(np.log(np.finfo(np.float32).max))


@struct.dataclass
class ParallelDecodeSettings(LoopSettings):
    """Settings of parallel decoding; all static, the defaults are aMUSEd's.

    Attributes:
      num_steps: steps from all masked to none.
      schedule: fraction still masked after a fraction x of the steps: "cosine" is cos(pi x / 2),
        "linear" 1 - x, "power" 1 - x^exponent.
      exponent: of the "power" schedule.
      choice_temperature: (first, last) step's strength of the Gumbel noise on the confidences,
        linear in between; 0 keeps strictly the most confident tokens.
      temperature: (first, last) step's softmax temperature, linear in between.
      guidance_scale: (first, last) step's guidance, linear in between; 1 is no guidance. aMUSEd
        holds it constant, MUSE starts at 1 and raises it.
      strength: fraction of the steps to run; below 1 needs an image to start from, of which the
        schedule's fraction is masked first.
      draw_implementation: see ops/categorical.py.
    """

    named: ClassVar[str] = "parallel decoding: "
    num_steps: int = struct.field(pytree_node=False, default=12)
    schedule: str = struct.field(pytree_node=False, default="cosine")
    exponent: float = struct.field(pytree_node=False, default=2.0)
    choice_temperature: tuple[float, float] = struct.field(pytree_node=False, default=(2.0, 0.0))
    temperature: tuple[float, float] = struct.field(pytree_node=False, default=(1.0, 1.0))
    guidance_scale: tuple[float, float] = struct.field(pytree_node=False, default=(10.0, 10.0))
    strength: float = struct.field(pytree_node=False, default=1.0)
    draw_implementation: str = struct.field(pytree_node=False, default="auto")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        self.require(self.num_steps >= 1, "num_steps", "at least 1")
        self.require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        self.require(self.exponent > 0, "exponent", "above 0")
        ok = all(0 <= x < np.inf for x in self.choice_temperature)
        self.require(ok, "choice_temperature", "at least 0 and finite")
        ok = all(0 < x < np.inf for x in self.temperature)
        self.require(ok, "temperature", "above 0 and finite")
        self.require(bool(np.isfinite(self.guidance_scale).all()), "guidance_scale", "finite")
        self.require(0 < self.strength <= 1, "strength", "in (0, 1]")
        fewest = f"at least 1 / num_steps = {1 / self.num_steps:.3g}, or no step is left to run"
        self.require(self.start_step < self.num_steps, "strength", fewest)

    @property
    def start_step(self) -> int:
        """The first step that is run."""
        return self.num_steps - int(self.num_steps * self.strength)

    def course(self, ramps: Ramps | None = None) -> Course:
        """What differs from step to step; `ramps` replaces the settings'."""
        count, ratios = self.num_steps, self.mask_ratios()
        # The reference masks nothing at full strength; here that is the same as no image at all.
        masked_first = np.float32(1) if self.start_step == 0 else ratios[self.start_step - 1]
        return Course.of(
            np.append(np.float32(1), ratios),
            count - 1,
            ramps or self.ramps(),
            start=masked_first,
            edges=np.asarray([self.start_step, count], np.int32),
            choice_temperature=linear_ramp(*self.choice_temperature, count),
        )

    def program(self) -> ParallelDecodeSettings:
        """The same for all settings that differ in their course alone."""
        fixed: dict[str, Any] = {"schedule": "cosine", "exponent": 2.0, "strength": 1.0}
        return self.without_ramps(num_steps=1, choice_temperature=(0.0, 0.0), **fixed)

    def mask_ratios(self) -> np.ndarray:
        """Fraction still masked after every step, float32 [num_steps]; the last is about 0.

        The reference's float32 arithmetic: the numbers of tokens are rounded down from these, so
        that a last bit can decide (12 steps and 256 tokens give 127 after the eighth, not 128).
        """
        count = np.float32(self.num_steps)
        done = np.arange(1, self.num_steps + 1, dtype=np.float32) / count
        if self.schedule == "linear":
            return np.float32(1) - done
        if self.schedule == "power":
            return np.float32(1) - done ** np.float32(self.exponent)
        angle = done * np.float32(np.pi) / np.float32(2)
        # Rounded from float64: numpy's own float32 cosine differs between processors.
        return np.cos(angle.astype(np.float64)).astype(np.float32)


class Visited(NamedTuple):
    """What every step saw, stacked over the steps that were run.

    Attributes:
      tokens: int32 [steps, batch, h, w], after the step.
      predicted: int32 [steps, batch, h, w], complete, before masking.
      confidence: float32 [steps, batch, h, w], with its noise.
      masked: int32 [steps, batch], the number masked again (0 in the last step).
    """

    tokens: Array
    predicted: Array
    confidence: Array
    masked: Array


def parallel_decode(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: ParallelDecodeSettings,
    mask_token: int,
    start: Start = FROM_NOISE,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps.

    Args:
      denoise: guided prediction, see sampling/guidance.py; its t is the schedule's masked fraction,
        around known tokens the true one.
      key: PRNG key, or [batch] keys, one per sample, of which alone its randomness comes.
      shape: (batch, h, w).
      settings: see `ParallelDecodeSettings`.
      mask_token: the mask's id, outside the codes that `denoise` predicts.
      start: what to start from and to keep. Image tokens are needed for a strength below 1: the
        fraction of them that the schedule leaves masked at that step is masked at random. Initial
        tokens have the mask's id where unknown.
      ramps: replaces the settings' temperature and guidance ramps.
      trace: also return what every step saw.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with `Visited`.

    Raises:
      ValueError: a setting or a combination of inputs that makes no sense.
    """
    _check_start(start, settings)
    course = settings.course(ramps)
    return run(plan(denoise, key, shape, settings, mask_token, start, course), trace)


def plan(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: ParallelDecodeSettings,
    mask_token: int,
    start: Start,
    course: Course,
) -> Loop:
    """`parallel_decode` before it runs.

    Args:
      denoise: as in `parallel_decode`.
      key: as in `parallel_decode`.
      shape: as in `parallel_decode`.
      settings: or their `program`; what it leaves out is in the course.
      mask_token: as in `parallel_decode`.
      start: as in `parallel_decode`.
      course: what differs from step to step; it may be traced.

    Raises:
      ValueError: a setting that makes no sense.
    """
    settings.check()
    keys, count = keys_of_samples(key, shape[0]), len(course.t)
    randomness = start.randomness or randomness_of(keys, shape[1:], count, KEYS_PER_STEP)
    predict = denoise if settings.guided else without_guidance(denoise)
    draw = start.draw or categorical(settings.draw_implementation)
    level, start_ratio = level_of(mask_token, start.known), _start_ratio(start)

    def body(tokens: Array, step: Step) -> tuple[Array, Visited]:
        """Predict, draw what is unknown, mask the least confident of it again."""
        unknown = tokens == mask_token
        logits = predict(tokens, level(tokens, step), step.guidance_scale)
        logits = logits.astype(jnp.float32) / step.temperature
        drawn = draw(step.number, logits, step.draw_keys)
        predicted = jnp.where(unknown, drawn, tokens)
        confidence = noisy_confidence(logits, drawn, unknown, step)
        masked = mask_count(unknown, step.t_next, start_ratio)
        again = apply_mask(predicted, least_confident(confidence, masked), mask_token)
        # The floor of one masked token can hit a kept one where nothing else is left.
        after = start.hold(jnp.where(step.corrupt, again, predicted))
        return after, Visited(after, predicted, confidence, jnp.where(step.corrupt, masked, 0))

    tokens = _first_tokens(start, course, shape, mask_token, randomness.start_uniform)
    keys_of_draws = step_keys(keys, count, KEYS_PER_STEP, 0)
    steps = make_steps(course, uniform=randomness.uniform, draw_keys=keys_of_draws)
    return Loop(tokens, steps, [with_uniform(body, start.randomness, shape[1:])], course.edges)


def noisy_confidence(logits: Array, drawn: Array, unknown: Array, step: Step) -> Array:
    """The drawn tokens' log-probability, largest where nothing was unknown, and the step's noise.

    Args:
      logits: float32 [batch, h, w, codes].
      drawn: int [batch, h, w].
      unknown: bool [batch, h, w], where a token was drawn.
      step: has the noise and its strength.

    Returns:
      float32 [batch, h, w].
    """
    strength: Any = step.choice_temperature
    confidence = jnp.where(unknown, log_probability(logits, drawn), KNOWN_CONFIDENCE)
    return confidence + strength * gumbel_noise(step.uniform)


def log_probability(logits: Array, tokens: Array) -> Array:
    """log softmax(logits) at the tokens, at least log(1e-20). [batch, h, w] float32."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return jnp.maximum(chosen - jax.nn.logsumexp(logits, axis=-1), np.log(SMALLEST))


def gumbel_noise(uniform: Array) -> Array:
    """Standard Gumbel noise from uniform draws, with the reference's clipping."""
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(uniform, SMALLEST)), SMALLEST))


def mask_count(unknown: Array, ratio: Array, start_ratio: Array) -> Array:
    """How many tokens stay masked: less than were, but at least one.

    Args:
      unknown: bool [batch, h, w], before the step.
      ratio: float32 scalar, the schedule's fraction after the step.
      start_ratio: float32 scalar or [batch], fraction masked at the start.

    Returns:
      int32 [batch].
    """
    batch, height, width = unknown.shape
    # In this order: the product is rounded down, so that a last bit can decide.
    wanted = jnp.floor(height * width * (start_ratio * ratio)).astype(jnp.int32)
    wanted = jnp.broadcast_to(wanted, (batch,))
    return jnp.maximum(1, jnp.minimum(unknown.sum((1, 2), dtype=jnp.int32) - 1, wanted))


def least_confident(confidence: Array, count: Array) -> Array:
    """Positions below the `count`-th lowest confidence: exactly `count` of them but for ties.

    Args:
      confidence: float32 [batch, h, w].
      count: int32 [batch], at least 1.

    Returns:
      bool [batch, h, w].
    """
    flat = confidence.reshape(confidence.shape[0], -1)
    place = jnp.minimum(count, flat.shape[1] - 1)[:, None]
    positions = lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    # Compared inside the sorted row: XLA may compute a confidence a second time for a second use,
    # with another last bit, and the threshold would no longer equal its own position.
    ordered, origin = lax.sort((flat, positions), dimension=1, num_keys=1)
    below = ordered < jnp.take_along_axis(ordered, place, axis=1)
    back = jnp.argsort(origin, axis=1)
    return jnp.take_along_axis(below, back, axis=1).reshape(confidence.shape)


def _check_start(start: Start, settings: ParallelDecodeSettings) -> None:
    if start.image_tokens is not None and start.initial_tokens is not None:
        raise ValueError("give image_tokens or initial_tokens, not both")
    if settings.strength < 1 and start.image_tokens is None:
        raise ValueError(
            f"strength {settings.strength} below 1 needs image_tokens, the image to start from"
        )


def _first_tokens(
    start: Start,
    course: Course,
    shape: tuple[int, int, int],
    mask_token: int,
    uniform: Array | None,
) -> Array:
    tokens = jnp.full(shape, mask_token, jnp.int32)
    if start.initial_tokens is not None:
        tokens = jnp.asarray(start.initial_tokens, jnp.int32)
    if start.image_tokens is not None:
        if uniform is None:
            raise ValueError("image_tokens need randomness with start_uniform")
        image_tokens = jnp.asarray(start.image_tokens, jnp.int32)
        tokens, _ = mask_randomly(image_tokens, uniform, course.start, mask_token)
    return start.hold(tokens).astype(jnp.int32)


def _start_ratio(start: Start) -> Array:
    if start.starting_mask_ratio is not None:
        return jnp.asarray(start.starting_mask_ratio, jnp.float32)
    if start.known is None:
        return jnp.float32(1.0)
    return jnp.asarray(start.known.generate).astype(jnp.float32).mean((1, 2))
