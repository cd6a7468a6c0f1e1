"""Paella's sampler: predict every token, draw, renoise, repeat (docs/models/paella.md 4.1).

The whole loop is `lax.scan`; its carry is the tokens, logits are never stored across steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from paella_jax.noise.tokens import random_tokens, replace_tokens, sample_keys, uniform_map
from paella_jax.ops.categorical import draw_categorical
from paella_jax.ops.codebook import nearest_code
from paella_jax.sampling.filters import typical_filter
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.typing import Array

RENOISE_MODES = ("initial", "previous", "fresh")
RENOISE_CHOICES = ("random", "confidence")
DRAWS = ("categorical", "argmax", "quantize")
START_KEY = 2**31 - 1  # beyond the keys of any step


class Ramps(NamedTuple):
    """Per-step values that may change without compiling again; float32 [num_steps] each."""

    temperature: Any
    guidance_scale: Any


@struct.dataclass
class RenoiseSettings:
    """Settings of the renoise sampler; all static, the defaults are the released model's.

    Attributes:
      num_steps: predictions made.
      t_start: noise level of the first prediction (below 1 for image-to-image).
      t_end: noise level the last renoising would return to.
      temperature: (first, last) step's softmax temperature, linear in between.
      guidance_scale: (first, last) step's guidance, linear in between; 1 is no guidance.
      guided_steps: guidance stops after this many steps; None means never.
      renoise_steps: how many steps are followed by renoising; None means all but the last,
        which never is.
      renoise_mode: where replaced tokens come from: the "initial" noise, the tokens of the
        "previous" step, or "fresh" noise.
      renoise_choice: which tokens are replaced: "random" ones, or those drawn with the lowest
        "confidence" (as masked transformers choose), for comparison.
      draw: "categorical", "argmax" (of the guided logits) or "quantize" (nearest code of the
        expected code).
      quantize_from_step: switches to "quantize" at this step; None means never.
      typical_mass: keep this probability mass of typical tokens; None switches filtering off.
      typical_min_tokens: always keep this many tokens.
      draw_implementation: see ops/categorical.py.
    """

    num_steps: int = struct.field(pytree_node=False, default=12)
    t_start: float = struct.field(pytree_node=False, default=1.0)
    t_end: float = struct.field(pytree_node=False, default=0.0)
    temperature: tuple[float, float] = struct.field(pytree_node=False, default=(0.7, 0.3))
    guidance_scale: tuple[float, float] = struct.field(pytree_node=False, default=(8.0, 8.0))
    guided_steps: int | None = struct.field(pytree_node=False, default=None)
    renoise_steps: int | None = struct.field(pytree_node=False, default=None)
    renoise_mode: str = struct.field(pytree_node=False, default="initial")
    renoise_choice: str = struct.field(pytree_node=False, default="random")
    draw: str = struct.field(pytree_node=False, default="categorical")
    quantize_from_step: int | None = struct.field(pytree_node=False, default=None)
    typical_mass: float | None = struct.field(pytree_node=False, default=None)
    typical_min_tokens: int = struct.field(pytree_node=False, default=1)
    draw_implementation: str = struct.field(pytree_node=False, default="auto")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        _require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        _require(0 <= self.t_end <= 1, "t_end", self.t_end, "in [0, 1]")
        _require(self.t_end < self.t_start <= 1, "t_start", self.t_start, "in (t_end, 1]")
        _require(min(self.temperature) > 0, "temperature", self.temperature, "above 0")
        _require(
            self.renoise_mode in RENOISE_MODES, "renoise_mode", self.renoise_mode, RENOISE_MODES
        )
        choice = self.renoise_choice
        _require(choice in RENOISE_CHOICES, "renoise_choice", choice, RENOISE_CHOICES)
        _require(self.draw in DRAWS, "draw", self.draw, DRAWS)
        for name in ("guided_steps", "renoise_steps", "quantize_from_step"):
            steps = getattr(self, name)
            _require(steps is None or steps >= 0, name, steps, "at least 0, or None")
        mass = self.typical_mass
        _require(mass is None or 0 < mass < 1, "typical_mass", mass, "in (0, 1) or None")
        minimum = self.typical_min_tokens
        _require(minimum >= 1, "typical_min_tokens", minimum, "at least 1")

    def ramps(self) -> Ramps:
        """Temperature and guidance of every step."""
        return Ramps(
            linear_ramp(*self.temperature, self.num_steps),
            linear_ramp(*self.guidance_scale, self.num_steps),
        )

    def without_ramps(self) -> RenoiseSettings:
        """The same for every temperature and guidance: a program compiled for it serves them all,
        given `ramps` as an argument."""
        guided = self.guidance_scale != (1.0, 1.0)
        scale = (2.0, 2.0) if guided else (1.0, 1.0)
        return dataclasses.replace(self, temperature=(1.0, 1.0), guidance_scale=scale)


def _require(ok: bool, name: str, value: object, wanted: object) -> None:
    if not ok:
        raise ValueError(f"sampler setting {name}={value!r} must be {wanted}")


class Randomness(NamedTuple):
    """Everything random but the draws.

    Attributes:
      initial: int32 [batch, h, w], the noise.
      mask_uniform: float32 [num_steps, batch, h, w], decides what a step renoises.
      start_uniform: float32 [batch, h, w], decides what of an image is noised before the first
        step; only needed with `image_tokens`.
    """

    initial: Array
    mask_uniform: Array
    start_uniform: Array | None = None


class Known(NamedTuple):
    """Tokens that stay as they are: inpainting, outpainting.

    Attributes:
      tokens: int [batch, h, w]; only read where they are kept.
      generate: bool [batch, h, w], True where the sampler draws.
    """

    tokens: Array | np.ndarray
    generate: Array | np.ndarray

    def hold(self, tokens: Array) -> Array:
        """`tokens` with the kept ones put back."""
        return jnp.where(self.generate, tokens, self.tokens)


class Step(NamedTuple):
    """One step's inputs, stacked over steps for the scan."""

    number: Array  # of the step, from 0
    t: Array
    t_next: Array
    temperature: Array
    guidance_scale: Array
    renoise: Array
    mask_uniform: Array
    draw_keys: Array
    fresh_keys: Array


# (step's index, guided logits / temperature [batch, h, w, codes], keys [batch]) -> [batch, h, w]
Draw = Callable[[Array, Array, Array], Array]


def sample(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, int, int],
    settings: RenoiseSettings,
    *,
    codebook_size: int,
    mask_token: int | None = None,
    initial_tokens: Array | None = None,
    image_tokens: Array | None = None,
    known: Known | None = None,
    codebook: Array | None = None,
    sample_index: Array | None = None,
    ramps: Ramps | None = None,
    randomness: Randomness | None = None,
    draw: Draw | None = None,
    trace: bool = False,
) -> Any:
    """Draws token maps.

    Args:
      denoise: guided prediction, see sampling/guidance.py.
      key: PRNG key, or [batch] keys, one per sample.
      shape: (batch, h, w).
      settings: see `RenoiseSettings`.
      codebook_size: the vocabulary.
      mask_token: of a network trained with masks: the noise is then this id everywhere, and only
        masked tokens are drawn, since such a network predicts nothing useful for visible ones.
      initial_tokens: tokens at level `t_start`; None starts from the noise.
      image_tokens: clean tokens to start from instead: a share `t_start` of them is replaced by
        the noise here, so that t_start = 1 is the same as starting from the noise.
      known: tokens to keep and where to draw; None draws everywhere.
      codebook: [codes, C], needed by the "quantize" draw.
      sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.
        Default 0..batch-1.
      ramps: replaces the settings' temperature and guidance ramps.
      randomness: replaces the random noise and masks, for tests against recorded runs.
      draw: replaces the settings' way of drawing in every step.
      trace: also return the tokens after every step; with a `mask_token` before masking again.

    Returns:
      int32 [batch, h, w]; with `trace`, a pair with int32 [num_steps, batch, h, w].

    Raises:
      ValueError: a setting that makes no sense, or none for a masked network.
    """
    settings.check()
    if mask_token is not None:
        check_masked(settings)
    batch, *grid = shape
    index = jnp.arange(batch) if sample_index is None else sample_index
    keys = key if key.ndim == 1 else sample_keys(key, index)
    if randomness is None:
        randomness = _randomness(keys, tuple(grid), settings.num_steps, codebook_size)
    if mask_token is not None:
        randomness = randomness._replace(initial=jnp.full(shape, mask_token, jnp.int32))
    # Kept tokens enter the initial noise as well: renoising with it leaves them alone.
    hold = _hold(known)
    randomness = randomness._replace(initial=hold(randomness.initial))
    steps = _steps(settings, ramps or settings.ramps(), keys, randomness)
    tokens = hold(_start(settings, randomness, initial_tokens, image_tokens))
    history: list[Any] = []
    for start, stop, guided, draw_mode in _segments(settings):
        implementation = settings.draw_implementation
        choose = partial(_draw, draw or draw_mode, codebook=codebook, implementation=implementation)
        body = _make_body(
            denoise, choose, known, settings, randomness, codebook_size, mask_token, guided, trace
        )
        part = jax.tree.map(lambda x, a=start, b=stop: x[a:b], steps)
        tokens, visited = lax.scan(body, tokens, part)
        history.append(visited)
    return (tokens, jnp.concatenate(history)) if trace else tokens


def _make_body(
    denoise: Denoise,
    choose: Callable[[Array, Step], Array],
    known: Known | None,
    settings: RenoiseSettings,
    randomness: Randomness,
    codebook_size: int,
    mask_token: int | None,
    guided: bool,
    trace: bool,
) -> Callable[[Array, Step], tuple[Array, Array | None]]:
    """The loop's body: predict, draw, renoise, put kept tokens back.

    The reference puts them back after the draw only; with "initial" and "previous" noise that is
    the same, since both hold them. With "fresh" noise it would lose them. Around kept tokens a
    network trained with masks is told the share that is masked, as in training.
    """
    hold = _hold(known)

    def body(tokens: Array, step: Step) -> tuple[Array, Array | None]:
        t = jnp.full((tokens.shape[0],), step.t)
        if mask_token is not None and known is not None:
            t = (tokens == mask_token).mean((1, 2), dtype=jnp.float32)
        logits = denoise(tokens, t, step.guidance_scale if guided else None)
        if settings.typical_mass is not None:
            logits = typical_filter(logits, settings.typical_mass, settings.typical_min_tokens)
        drawn = choose(logits, step)
        if mask_token is not None:
            drawn = jnp.where(tokens == mask_token, drawn, tokens)
        if settings.renoise_mode == "initial":
            source = randomness.initial
        elif settings.renoise_mode == "previous":
            source = tokens
        else:
            source = random_tokens(step.fresh_keys, tokens.shape[1:], codebook_size)
        order = step.mask_uniform
        if settings.renoise_choice == "confidence":
            order = confidence_order(logits, drawn, None if known is None else known.generate)
        renoised, _ = replace_tokens(drawn, source, order, step.t_next)
        after = hold(jnp.where(step.renoise, renoised, drawn))
        if not trace:
            return after, None
        return after, after if mask_token is None else hold(drawn)

    return body


def check_masked(settings: RenoiseSettings) -> None:
    """Raises ValueError for what only a network trained with random tokens can do."""
    why = "for a network trained with masks"
    _require(settings.renoise_mode == "initial", "renoise_mode", settings.renoise_mode,
             f"'initial' {why}: masks have no other source")  # fmt: skip
    _require(settings.renoise_choice == "random", "renoise_choice", settings.renoise_choice,
             f"'random' {why}; its lowest-confidence sampler is parallel decoding")  # fmt: skip


def _hold(known: Known | None) -> Callable[[Array], Array]:
    return (lambda tokens: tokens) if known is None else known.hold


def confidence_order(
    logits: Array, drawn: Array, generate: Array | np.ndarray | None = None
) -> Array:
    """Each position's rank by the probability of its drawn token, least confident first.

    Args:
      logits: [batch, h, w, codes].
      drawn: int [batch, h, w].
      generate: bool [batch, h, w], False where a token is kept: only the others are ranked.

    Returns:
      float32 [batch, h, w]: ranks from 1 over their number, so that a share t of them is at most t;
      it replaces the uniform map. Above 1 for kept tokens.
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


def _start(
    settings: RenoiseSettings,
    randomness: Randomness,
    initial_tokens: Array | None,
    image_tokens: Array | None,
) -> Array:
    """Tokens at level `t_start`."""
    if image_tokens is not None:
        uniform = randomness.start_uniform
        if initial_tokens is not None or uniform is None:
            raise ValueError("image_tokens exclude initial_tokens and need start_uniform")
        return replace_tokens(image_tokens, randomness.initial, uniform, settings.t_start)[0]
    return randomness.initial if initial_tokens is None else initial_tokens


def _draw(
    mode: str | Draw, logits: Array, step: Step, *, codebook: Array | None, implementation: str
) -> Array:
    if mode == "argmax":
        # Of the logits as they are: dividing by the temperature can round two of them together.
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / step.temperature
    if callable(mode):
        return mode(step.number, logits, step.draw_keys)
    if mode == "categorical":
        one_sample = partial(draw_categorical, implementation=implementation)
        return jax.vmap(one_sample)(step.draw_keys, logits)
    if codebook is None:
        raise ValueError("the 'quantize' draw needs the tokenizer's codebook")
    return nearest_code(jax.nn.softmax(logits, axis=-1) @ codebook, codebook)


def _randomness(
    keys: Array, grid: tuple[int, ...], num_steps: int, codebook_size: int
) -> Randomness:
    noise_keys, start_keys = sample_keys_at(keys, 0), sample_keys_at(keys, START_KEY)
    masks = jax.vmap(partial(uniform_map, grid=grid))(_step_keys(keys, num_steps, 1))
    initial = random_tokens(noise_keys, grid, codebook_size)
    return Randomness(initial, masks, uniform_map(start_keys, grid))


def sample_keys_at(keys: Array, count: int | Array) -> Array:
    """Each sample's `count`-th key. keys [batch] -> [batch]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)


def _step_keys(keys: Array, num_steps: int, which: int) -> Array:
    """One key per step and sample, of three a step. keys [batch] -> [num_steps, batch]."""
    return jax.vmap(partial(sample_keys_at, keys))(3 * jnp.arange(num_steps) + which)


def _steps(settings: RenoiseSettings, ramps: Ramps, keys: Array, randomness: Randomness) -> Step:
    count = settings.num_steps
    times = linear_ramp(settings.t_start, settings.t_end, count + 1)
    renoise_steps = count - 1 if settings.renoise_steps is None else settings.renoise_steps
    return Step(
        number=jnp.arange(count),
        t=jnp.asarray(times[:-1]),
        t_next=jnp.asarray(times[1:]),
        temperature=jnp.asarray(ramps.temperature),
        guidance_scale=jnp.asarray(ramps.guidance_scale),
        renoise=jnp.arange(count) < min(renoise_steps, count - 1),
        mask_uniform=randomness.mask_uniform,
        draw_keys=_step_keys(keys, count, 2),
        fresh_keys=_step_keys(keys, count, 3),
    )


def _segments(settings: RenoiseSettings) -> list[tuple[int, int, bool, str]]:
    """Runs of steps with the same static form: (start, stop, guided, draw)."""
    count = settings.num_steps
    guided = count if settings.guided_steps is None else min(settings.guided_steps, count)
    if settings.guidance_scale == (1.0, 1.0):
        guided = 0
    switch = settings.quantize_from_step
    switch = count if switch is None else min(switch, count)
    edges = sorted({0, guided, switch, count})
    return [
        (a, b, a < guided, settings.draw if a < switch else "quantize") for a, b in pairwise(edges)
    ]
