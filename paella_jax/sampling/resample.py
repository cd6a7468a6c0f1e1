"""Mask-free editing: draw a few random tokens of an image again, many times.

Source: docs/models/muse.md 1.7.

Each round corrupts a random share of the tokens and draws them conditioned on the others and the
prompt (Gibbs sampling), so that the image moves towards the prompt without a mask from the user.
The whole loop is one `lax.scan` whose carry is the tokens.
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

from paella_jax.noise.masking import apply_mask, exact_mask
from paella_jax.noise.tokens import random_tokens, sample_keys, uniform_map
from paella_jax.ops.categorical import draw_categorical
from paella_jax.sampling.filters import top_k_filter
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.renoise import Known, Ramps, sample_keys_at
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.typing import Array

KEYS_PER_ROUND = 3  # which tokens, their noise (uniform corruption only), the draw
NEVER = 2.0  # above every uniform draw: such a position is chosen last


@struct.dataclass
class ResampleSettings:
    """Settings of mask-free editing; all static, the defaults are MUSE's.

    Attributes:
      rounds: how often a share of the tokens is drawn again.
      share: of the tokens that may change, drawn again in a round; rounded, at least one token.
      top_k: draw among this many most probable tokens.
      temperature: (first, last) round's softmax temperature, linear in between.
      guidance_scale: (first, last) round's guidance, linear in between; 1 is no guidance.
      frames: states to return with `trace`, evenly spaced, the last one being the result; None
        returns the state after every round.
      draw_implementation: see ops/categorical.py.
    """

    rounds: int = struct.field(pytree_node=False, default=100)
    share: float = struct.field(pytree_node=False, default=0.08)
    top_k: int = struct.field(pytree_node=False, default=3)
    temperature: tuple[float, float] = struct.field(pytree_node=False, default=(1.0, 1.0))
    guidance_scale: tuple[float, float] = struct.field(pytree_node=False, default=(4.0, 4.0))
    frames: int | None = struct.field(pytree_node=False, default=None)
    draw_implementation: str = struct.field(pytree_node=False, default="auto")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        _require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        _require(0 < self.share <= 1, "share", self.share, "in (0, 1]")
        _require(self.top_k >= 1, "top_k", self.top_k, "at least 1")
        _require(min(self.temperature) > 0, "temperature", self.temperature, "above 0")
        frames, most = self.frames, f"from 1 to rounds={self.rounds}"
        _require(frames is None or 1 <= frames <= self.rounds, "frames", frames, most)

    def ramps(self) -> Ramps:
        """Temperature and guidance of every round."""
        return Ramps(
            linear_ramp(*self.temperature, self.rounds),
            linear_ramp(*self.guidance_scale, self.rounds),
        )

    def without_ramps(self) -> ResampleSettings:
        """The same for every temperature and guidance: a program compiled for it serves them all,
        given `ramps` as an argument."""
        guided = self.guidance_scale != (1.0, 1.0)
        scale = (2.0, 2.0) if guided else (1.0, 1.0)
        return dataclasses.replace(self, temperature=(1.0, 1.0), guidance_scale=scale)

    def frame_rounds(self) -> np.ndarray:
        """Numbers of the rounds, from 0, whose states are returned; int [frames]."""
        count = self.rounds if self.frames is None else self.frames
        return np.round(self.rounds / count * np.arange(1, count + 1)).astype(int) - 1


def _require(ok: bool, name: str, value: object, wanted: object) -> None:
    if not ok:
        raise ValueError(f"mask-free editing: {name}={value!r} must be {wanted}")


class Round(NamedTuple):
    """One round's inputs, stacked over rounds for the scan."""

    number: Array
    temperature: Array
    guidance_scale: Array


def resample(
    denoise: Denoise,
    key: Array,
    image_tokens: Array,
    settings: ResampleSettings,
    *,
    codebook_size: int,
    mask_token: int | None = None,
    known: Known | None = None,
    sample_index: Array | None = None,
    ramps: Ramps | None = None,
    trace: bool = False,
) -> Any:
    """Edits token maps.

    Args:
      denoise: guided prediction, see guidance.py; its t is the share corrupted in each round.
      key: PRNG key, or [batch] keys, one per sample.
      image_tokens: int [batch, h, w], clean.
      settings: see `ResampleSettings`.
      codebook_size: the vocabulary.
      mask_token: of a network trained with masks; None corrupts by random tokens.
      known: tokens to keep and where to draw; None may change every token.
      sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.
        Default 0..batch-1.
      ramps: replaces the settings' temperature and guidance.
      trace: also return the states that `settings.frames` asks for.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [frames, batch, h, w].

    Raises:
      ValueError: a setting that makes no sense.
    """
    settings.check()
    tokens = jnp.asarray(image_tokens, jnp.int32)
    index = jnp.arange(tokens.shape[0]) if sample_index is None else sample_index
    keys = key if key.ndim == 1 else sample_keys(key, index)
    ramps = ramps or settings.ramps()
    rounds = Round(
        number=jnp.arange(settings.rounds),
        temperature=jnp.asarray(ramps.temperature),
        guidance_scale=jnp.asarray(ramps.guidance_scale),
    )
    generate = jnp.ones(tokens.shape, bool)
    if known is not None:
        tokens = known.hold(tokens).astype(jnp.int32)
        generate = jnp.asarray(known.generate, bool)
    body = partial(
        _round,
        denoise=denoise,
        keys=keys,
        generate=generate,
        settings=settings,
        codebook_size=codebook_size,
        mask_token=mask_token,
        trace=trace,
    )
    tokens, visited = lax.scan(body, tokens, rounds)
    if visited is None:
        return tokens
    return tokens, visited[settings.frame_rounds()]


def _round(
    tokens: Array,
    step: Round,
    *,
    denoise: Denoise,
    keys: Array,
    generate: Array,
    settings: ResampleSettings,
    codebook_size: int,
    mask_token: int | None,
    trace: bool,
) -> tuple[Array, Array | None]:
    """The loop's body: choose tokens, corrupt them, draw them again."""
    child = lambda which: sample_keys_at(keys, KEYS_PER_ROUND * step.number + which)
    grid = tokens.shape[1:]
    chosen = choose(uniform_map(child(0), grid), generate, settings.share)
    if mask_token is None:
        corrupted = jnp.where(chosen, random_tokens(child(1), grid, codebook_size), tokens)
    else:
        corrupted = apply_mask(tokens, chosen, mask_token)
    guided = settings.guidance_scale != (1.0, 1.0)
    t = chosen.astype(jnp.float32).mean((1, 2))
    logits = denoise(corrupted, t, step.guidance_scale if guided else None)
    logits = top_k_filter(logits, settings.top_k) / step.temperature
    draw = partial(draw_categorical, implementation=settings.draw_implementation)
    tokens = jnp.where(chosen, jax.vmap(draw)(child(2), logits), tokens)
    return tokens, tokens if trace else None


def choose(uniform: Array, generate: Array, share: float) -> Array:
    """The positions that a round draws again: a share of those that may change, at least one.

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
