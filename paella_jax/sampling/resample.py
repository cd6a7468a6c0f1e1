"""Mask-free editing: draw a few random tokens of an image again, many times.

Source: docs/models/muse.md 1.7.

Each round corrupts a random fraction of the tokens and draws them conditioned on the others and the
prompt (Gibbs sampling), so that the image moves towards the prompt without a mask from the user.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from paella_jax.noise.masking import exact_mask
from paella_jax.noise.tokens import uniform_map
from paella_jax.sampling.filters import top_k_filter
from paella_jax.sampling.guidance import Denoise, without_guidance
from paella_jax.sampling.loop import Loop, run
from paella_jax.sampling.token_loop import (
    Known,
    LoopSettings,
    Ramps,
    Vocabulary,
    categorical,
    keys_of_samples,
    noise_of,
    step_keys,
)
from paella_jax.typing import Array

KEYS_PER_ROUND = 3  # which tokens (0), their noise (1, uniform corruption only), the draw (2)
NEVER = 2.0  # above every uniform draw: such a position is chosen last


class RoundCourse(NamedTuple):
    """All that differs from round to round, as arrays, so that one program serves every course.

    Attributes:
      temperature: float32 [rounds].
      guidance_scale: float32 [rounds].
      share: float32 scalar, see `ResampleSettings`.
      edges: int32 [2], the first round and the number of them.
    """

    temperature: Any
    guidance_scale: Any
    share: Any
    edges: Any


@struct.dataclass
class ResampleSettings(LoopSettings):
    """Settings of mask-free editing; all static, the defaults are MUSE's.

    Attributes:
      rounds: how often a fraction of the tokens is drawn again.
      share: of the tokens that may change, drawn again in a round; rounded, at least one token.
      top_k: draw among this many most probable tokens.
      temperature: (first, last) round's softmax temperature, linear in between.
      guidance_scale: (first, last) round's guidance, linear in between; 1 is no guidance.
      frames: states to return with `trace`, evenly spaced, the last one being the result; None
        returns the state after every round.
      draw_implementation: see ops/categorical.py.
    """

    named: ClassVar[str] = "mask-free editing: "
    rounds: int = struct.field(pytree_node=False, default=100)
    share: float = struct.field(pytree_node=False, default=0.08)
    top_k: int = struct.field(pytree_node=False, default=3)
    temperature: tuple[float, float] = struct.field(pytree_node=False, default=(1.0, 1.0))
    guidance_scale: tuple[float, float] = struct.field(pytree_node=False, default=(4.0, 4.0))
    frames: int | None = struct.field(pytree_node=False, default=None)
    draw_implementation: str = struct.field(pytree_node=False, default="auto")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        self.require(self.rounds >= 1, "rounds", "at least 1")
        self.require(0 < self.share <= 1, "share", "in (0, 1]")
        self.require(self.top_k >= 1, "top_k", "at least 1")
        ok = all(0 < x < np.inf for x in self.temperature)
        self.require(ok, "temperature", "above 0 and finite")
        self.require(bool(np.isfinite(self.guidance_scale).all()), "guidance_scale", "finite")
        fits = self.frames is None or 1 <= self.frames <= self.rounds
        self.require(fits, "frames", f"from 1 to rounds={self.rounds}")

    @property
    def steps(self) -> int:
        """How many rounds the ramps have."""
        return self.rounds

    def course(self, ramps: Ramps | None = None) -> RoundCourse:
        """What differs from round to round, and the share; `ramps` replaces the settings'."""
        edges = np.asarray([0, self.rounds], np.int32)
        return RoundCourse(*(ramps or self.ramps()), np.float32(self.share), edges)

    def program(self) -> ResampleSettings:
        """The same for all settings that differ in their course alone."""
        return self.without_ramps(rounds=1, share=1.0, frames=None)

    def traced_steps(self) -> list[int]:
        """The numbers, from 1, of the rounds whose states are returned."""
        return (self.frame_rounds() + 1).tolist()

    def frame_rounds(self) -> np.ndarray:
        """Numbers of the rounds, from 0, whose states are returned; int [frames]."""
        count = self.rounds if self.frames is None else self.frames
        return np.round(self.rounds / count * np.arange(1, count + 1)).astype(int) - 1


class Round(NamedTuple):
    """One round's inputs, stacked over rounds for the scan; the keys are [batch]."""

    number: Array
    temperature: Array
    guidance_scale: Array
    choice_keys: Array
    noise_keys: Array
    draw_keys: Array


def resample(
    denoise: Denoise,
    key: Array,
    image_tokens: Array,
    settings: ResampleSettings,
    vocabulary: Vocabulary,
    known: Known | None = None,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Edits token maps.

    Args:
      denoise: guided prediction, see guidance.py; its t is the fraction corrupted in each round.
      key: PRNG key, or [batch] keys, one per sample, of which alone its randomness comes.
      image_tokens: int [batch, h, w], clean.
      settings: see `ResampleSettings`.
      vocabulary: without a mask, tokens are corrupted by random codes.
      known: tokens to keep and where to draw; None may change every token.
      ramps: replaces the settings' temperature and guidance.
      trace: also return the states that `settings.frames` asks for.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [frames, batch, h, w].

    Raises:
      ValueError: a setting that makes no sense.
    """
    course = settings.course(ramps)
    loop = plan(denoise, key, image_tokens, settings, vocabulary, known, course)
    out = run(loop, trace)
    return (out[0], out[1][settings.frame_rounds()]) if trace else out


def plan(
    denoise: Denoise,
    key: Array,
    image_tokens: Array,
    settings: ResampleSettings,
    vocabulary: Vocabulary,
    known: Known | None,
    course: RoundCourse,
) -> Loop:
    """`resample` before it runs; every round shows the tokens after it.

    Args:
      denoise: as in `resample`.
      key: as in `resample`.
      image_tokens: as in `resample`.
      settings: or their `program`; what it leaves out is in the course.
      vocabulary: as in `resample`.
      known: as in `resample`.
      course: what differs from round to round; it may be traced.

    Raises:
      ValueError: a setting that makes no sense.
    """
    settings.check()
    tokens = jnp.asarray(image_tokens, jnp.int32)
    keys, grid = keys_of_samples(key, tokens.shape[0]), tokens.shape[1:]
    generate = jnp.ones(tokens.shape, bool)
    if known is not None:
        tokens = known.hold(tokens).astype(jnp.int32)
        generate = jnp.asarray(known.generate, bool)
    predict = denoise if settings.guided else without_guidance(denoise)
    noise, draw = noise_of(vocabulary), categorical(settings.draw_implementation)

    def body(tokens: Array, step: Round) -> tuple[Array, Array]:
        """Choose tokens, corrupt them, predict, draw them again."""
        chosen = choose(uniform_map(step.choice_keys, grid), generate, course.share)
        corrupted = jnp.where(chosen, noise(step.noise_keys, tokens.shape), tokens)
        t = chosen.astype(jnp.float32).mean((1, 2))
        logits = predict(corrupted, t, step.guidance_scale)
        logits = top_k_filter(logits, settings.top_k) / step.temperature
        drawn = draw(step.number, logits, step.draw_keys)
        after = jnp.where(chosen, drawn, tokens)
        return after, after

    count = len(course.temperature)
    keys_of = lambda which: step_keys(keys, count, KEYS_PER_ROUND, which)
    steps = Round(
        number=jnp.arange(count),
        temperature=jnp.asarray(course.temperature),
        guidance_scale=jnp.asarray(course.guidance_scale),
        choice_keys=keys_of(0),
        noise_keys=keys_of(1),
        draw_keys=keys_of(2),
    )
    return Loop(tokens, steps, [body], course.edges)


def choose(uniform: Array, generate: Array, share: Any) -> Array:
    """The positions that a round draws again: a fraction of those that may change, at least one.

    Args:
      uniform: float32 [batch, h, w] in [0, 1).
      generate: bool [batch, h, w], where tokens may change.
      share: in (0, 1].

    Returns:
      bool [batch, h, w].
    """
    count = jnp.maximum(1, jnp.round(share * generate.sum((1, 2)))).astype(jnp.int32)
    # A sample where nothing may change has its one token chosen among the kept ones.
    return exact_mask(jnp.where(generate, uniform, NEVER), count) & generate
