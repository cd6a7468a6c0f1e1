"""MUSE's sampler: predict every token, keep the most confident, mask the rest, repeat.

It is aMUSEd's scheduler (docs/models/muse.md 2.6), as one `lax.scan` over the steps whose carry is
the tokens. Known tokens never change; after the last step nothing is masked.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from paella_jax.noise.masking import apply_mask, mask_randomly
from paella_jax.noise.tokens import sample_keys, uniform_map
from paella_jax.ops.categorical import draw_categorical
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.renoise import START_KEY, Draw, Known, Ramps, sample_keys_at
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.typing import Array

SCHEDULES = ("cosine", "linear", "power")
KEYS_PER_STEP = 2  # the token draw, the choice of what to mask
SMALLEST = 1e-20  # where the reference clips probabilities and uniform draws
KNOWN_CONFIDENCE = float(np.log(np.finfo(np.float32).max))


@struct.dataclass
class ParallelDecodeSettings:
    """Settings of parallel decoding; all static, the defaults are aMUSEd's.

    Attributes:
      num_steps: steps from all masked to none.
      schedule: share still masked after a share x of the steps: "cosine" is cos(pi x / 2),
        "linear" 1 - x, "power" 1 - x^exponent.
      exponent: of the "power" schedule.
      choice_temperature: (first, last) step's strength of the Gumbel noise on the confidences,
        linear in between; 0 keeps strictly the most confident tokens.
      temperature: (first, last) step's softmax temperature, linear in between.
      guidance_scale: (first, last) step's guidance, linear in between; 1 is no guidance. aMUSEd
        holds it constant, MUSE starts at 1 and raises it.
      strength: share of the steps to run; below 1 needs an image to start from, of which the
        schedule's share is masked first.
      draw_implementation: see ops/categorical.py.
    """

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
        _require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {SCHEDULES}")
        _require(self.exponent > 0, "exponent", self.exponent, "above 0")
        choice = self.choice_temperature
        _require(min(choice) >= 0, "choice_temperature", choice, "at least 0")
        _require(min(self.temperature) > 0, "temperature", self.temperature, "above 0")
        _require(0 < self.strength <= 1, "strength", self.strength, "in (0, 1]")
        fewest = f"at least 1 / num_steps = {1 / self.num_steps:.3g}, or no step is left to run"
        _require(self.start_step < self.num_steps, "strength", self.strength, fewest)

    @property
    def start_step(self) -> int:
        """The first step that is run."""
        return self.num_steps - int(self.num_steps * self.strength)

    def mask_ratios(self) -> np.ndarray:
        """Share still masked after every step, float32 [num_steps]; the last is about 0.

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

    def ramps(self) -> Ramps:
        """Softmax temperature and guidance of every step."""
        return Ramps(
            linear_ramp(*self.temperature, self.num_steps),
            linear_ramp(*self.guidance_scale, self.num_steps),
        )

    def without_ramps(self) -> ParallelDecodeSettings:
        """The same for every temperature and guidance: a program compiled for it serves them all,
        given `ramps` as an argument."""
        guided = self.guidance_scale != (1.0, 1.0)
        scale = (2.0, 2.0) if guided else (1.0, 1.0)
        return dataclasses.replace(self, temperature=(1.0, 1.0), guidance_scale=scale)


def _require(ok: bool, name: str, value: object, wanted: object) -> None:
    if not ok:
        raise ValueError(f"parallel decoding: {name}={value!r} must be {wanted}")


def mask_lengths(settings: ParallelDecodeSettings, positions: int) -> np.ndarray:
    """Tokens still masked after every step but the last, before clamping; int64 [num_steps - 1]."""
    ratios = settings.mask_ratios()[:-1]
    return np.floor(np.float32(positions) * ratios).astype(np.int64)


class DecodeRandomness(NamedTuple):
    """Everything random but the draws.

    Attributes:
      choice_uniform: float32 [num_steps, batch, h, w], noise of the confidences.
      start_uniform: float32 [batch, h, w], decides what of an image is masked before the first
        step; only needed with `image_tokens`.
    """

    choice_uniform: Array
    start_uniform: Array | None = None


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


class Step(NamedTuple):
    """One step's inputs, stacked over steps for the scan."""

    number: Array  # of the step, from 0
    t: Array  # share masked before it
    mask_ratio: Array  # share masked after it
    last: Array
    temperature: Array
    choice_temperature: Array
    guidance_scale: Array
    choice_uniform: Array
    draw_keys: Array


def parallel_decode(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: ParallelDecodeSettings,
    *,
    mask_token: int,
    initial_tokens: Array | None = None,
    image_tokens: Array | None = None,
    known: Known | None = None,
    starting_mask_ratio: Array | float | None = None,
    sample_index: Array | None = None,
    ramps: Ramps | None = None,
    randomness: DecodeRandomness | None = None,
    draw: Draw | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps.

    Args:
      denoise: guided prediction, see sampling/guidance.py; its t is the schedule's masked share,
        around `known` tokens the true one.
      key: PRNG key, or [batch] keys, one per sample.
      shape: (batch, h, w).
      settings: see `ParallelDecodeSettings`.
      mask_token: the mask's id, outside the codes that `denoise` predicts.
      initial_tokens: int [batch, h, w] with the mask id where unknown, instead of all masked.
      image_tokens: clean tokens to start from instead, needed for a strength below 1: the share
        of them that the schedule leaves masked at that step is masked at random.
      known: tokens to keep and where to draw; None draws everywhere.
      starting_mask_ratio: float32 scalar or [batch], the share that counts as masked at the start
        and that the schedule shrinks. Default: the share to draw of each sample's `known`, else 1.
        The reference takes the share over the whole batch.
      sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.
        Default 0..batch-1.
      ramps: replaces the settings' temperature and guidance ramps.
      randomness: replaces the random noise, for tests against recorded runs.
      draw: replaces the categorical draw in every step.
      trace: also return what every step saw.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with `Visited`.

    Raises:
      ValueError: a setting or a combination of inputs that makes no sense.
    """
    settings.check()
    if image_tokens is not None and initial_tokens is not None:
        raise ValueError("give image_tokens or initial_tokens, not both")
    if settings.strength < 1 and image_tokens is None:
        raise ValueError(
            f"strength {settings.strength} below 1 needs image_tokens, the image to start from"
        )
    batch, *grid = shape
    index = jnp.arange(batch) if sample_index is None else sample_index
    keys = key if key.ndim == 1 else sample_keys(key, index)
    if randomness is None:
        randomness = _randomness(keys, tuple(grid), settings.num_steps)
    tokens = _start(settings, shape, mask_token, randomness, initial_tokens, image_tokens, known)
    body = partial(
        _step,
        denoise=denoise,
        draw=draw or partial(_categorical, implementation=settings.draw_implementation),
        guided=settings.guidance_scale != (1.0, 1.0),
        mask_token=mask_token,
        start_ratio=_start_ratio(starting_mask_ratio, known),
        known=known,
        trace=trace,
    )
    steps = _steps(settings, ramps or settings.ramps(), keys, randomness)
    steps = jax.tree.map(lambda x: x[settings.start_step :], steps)
    tokens, visited = lax.scan(body, tokens, steps)
    return (tokens, visited) if trace else tokens


def _step(
    tokens: Array,
    step: Step,
    *,
    denoise: Denoise,
    draw: Draw,
    guided: bool,
    mask_token: int,
    start_ratio: Array,
    known: Known | None,
    trace: bool,
) -> tuple[Array, Visited | None]:
    """The loop's body: predict, draw what is unknown, mask the least confident of it again."""
    unknown = tokens == mask_token
    t = jnp.full((tokens.shape[0],), step.t)
    if known is not None:  # a network that is told the level learned it as the share of the map
        t = unknown.mean((1, 2), dtype=jnp.float32)
    logits = denoise(tokens, t, step.guidance_scale if guided else None)
    logits = logits.astype(jnp.float32) / step.temperature
    drawn = draw(step.number, logits, step.draw_keys)
    predicted = jnp.where(unknown, drawn, tokens)
    confidence = jnp.where(unknown, log_probability(logits, drawn), KNOWN_CONFIDENCE)
    confidence = confidence + step.choice_temperature * gumbel_noise(step.choice_uniform)
    masked = mask_count(unknown, step.mask_ratio, start_ratio)
    again = apply_mask(predicted, least_confident(confidence, masked), mask_token)
    tokens = jnp.where(step.last, predicted, again)
    if known is not None:
        # The floor of one masked token can hit a kept one where nothing else is left.
        tokens = known.hold(tokens)
    masked = jnp.where(step.last, 0, masked)
    return tokens, Visited(tokens, predicted, confidence, masked) if trace else None


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
      ratio: float32 scalar, the schedule's share after the step.
      start_ratio: float32 scalar or [batch], share masked at the start.

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


def _categorical(number: Array, logits: Array, keys: Array, *, implementation: str) -> Array:
    del number
    return jax.vmap(partial(draw_categorical, implementation=implementation))(keys, logits)


def _start(
    settings: ParallelDecodeSettings,
    shape: tuple[int, int, int],
    mask_token: int,
    randomness: DecodeRandomness,
    initial_tokens: Array | None,
    image_tokens: Array | None,
    known: Known | None,
) -> Array:
    tokens = jnp.full(shape, mask_token, jnp.int32)
    if initial_tokens is not None:
        tokens = jnp.asarray(initial_tokens, jnp.int32)
    # The reference masks nothing at full strength; here that is the same as no image at all.
    if image_tokens is not None and settings.start_step > 0:
        if randomness.start_uniform is None:
            raise ValueError("image_tokens need randomness with start_uniform")
        ratio = settings.mask_ratios()[settings.start_step - 1]
        image_tokens = jnp.asarray(image_tokens, jnp.int32)
        tokens, _ = mask_randomly(image_tokens, randomness.start_uniform, ratio, mask_token)
    return tokens if known is None else known.hold(tokens).astype(jnp.int32)


def _start_ratio(given: Array | float | None, known: Known | None) -> Array:
    if given is not None:
        return jnp.asarray(given, jnp.float32)
    if known is None:
        return jnp.float32(1.0)
    return jnp.asarray(known.generate).astype(jnp.float32).mean((1, 2))


def _randomness(keys: Array, grid: tuple[int, ...], num_steps: int) -> DecodeRandomness:
    noise = jax.vmap(partial(uniform_map, grid=grid))(_step_keys(keys, num_steps, 1))
    return DecodeRandomness(noise, uniform_map(sample_keys_at(keys, START_KEY), grid))


def _step_keys(keys: Array, num_steps: int, which: int) -> Array:
    """One key per step and sample, of two a step. keys [batch] -> [num_steps, batch]."""
    counts = KEYS_PER_STEP * jnp.arange(num_steps) + which
    return jax.vmap(partial(sample_keys_at, keys))(counts)


def _steps(
    settings: ParallelDecodeSettings, ramps: Ramps, keys: Array, randomness: DecodeRandomness
) -> Step:
    count = settings.num_steps
    ratios = settings.mask_ratios()
    return Step(
        number=jnp.arange(count),
        t=jnp.asarray(np.concatenate([np.ones(1, np.float32), ratios[:-1]])),
        mask_ratio=jnp.asarray(ratios),
        last=jnp.arange(count) == count - 1,
        temperature=jnp.asarray(ramps.temperature),
        choice_temperature=jnp.asarray(linear_ramp(*settings.choice_temperature, count)),
        guidance_scale=jnp.asarray(ramps.guidance_scale),
        choice_uniform=randomness.choice_uniform,
        draw_keys=_step_keys(keys, count, 0),
    )
