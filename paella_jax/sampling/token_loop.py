"""The frame that the token samplers share: settings, keys, where a loop starts, and its scan.

Everything that a setting decides is chosen before the scan, as a small function that each sampler's
body calls; the carry is the tokens, and logits are never stored across steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from paella_jax.noise.tokens import random_tokens, sample_keys, uniform_map
from paella_jax.ops.categorical import draw_categorical
from paella_jax.sampling.schedule import linear_ramp, require
from paella_jax.typing import Array

START_KEY = 2**31 - 1  # beyond the keys of any step

# (step's number, logits / temperature [batch, h, w, codes], keys [batch]) -> [batch, h, w]
Draw = Callable[[Array, Array, Array], Array]
# (tokens [batch, h, w], one step's inputs) -> the next tokens and what a trace keeps
Body = Callable[[Any, Any], tuple[Any, Any]]


class Ramps(NamedTuple):
    """Per-step values that may change without compiling again; float32 [num_steps] each."""

    temperature: Any
    guidance_scale: Any


class LoopSettings:
    """What the settings of all token samplers can do; each declares the fields itself."""

    named: ClassVar[str] = "sampler setting "  # begins a refusal
    num_steps: int
    temperature: tuple[float, float]
    guidance_scale: tuple[float, float]

    @property
    def steps(self) -> int:
        """How many steps the ramps have."""
        return self.num_steps

    @property
    def guided(self) -> bool:
        """Whether any step is guided."""
        return self.guidance_scale != (1.0, 1.0)

    def require(self, ok: bool, name: str, wanted: object) -> None:
        """Raises ValueError naming a setting and its value, unless `ok`."""
        require(ok, self, name, wanted)

    def ramps(self) -> Ramps:
        """Softmax temperature and guidance of every step."""
        return Ramps(
            linear_ramp(*self.temperature, self.steps),
            linear_ramp(*self.guidance_scale, self.steps),
        )

    def without_ramps(self) -> Self:
        """The same for every temperature and guidance: a program compiled for it serves them all,
        given `ramps` as an argument."""
        scale = (2.0, 2.0) if self.guided else (1.0, 1.0)
        settings: Any = self
        return dataclasses.replace(settings, temperature=(1.0, 1.0), guidance_scale=scale)


class Vocabulary(NamedTuple):
    """The tokens that a network predicts, and what it was trained to see in their place.

    Attributes:
      size: the number of codes.
      mask_token: the mask's id, of a network trained with masks; None where it was trained with
        random codes.
      codebook: float [codes, C], needed by the renoise sampler's "quantize" draw only.
    """

    size: int
    mask_token: int | None = None
    codebook: Array | None = None


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


class Randomness(NamedTuple):
    """Everything random but the draws.

    Attributes:
      uniform: float32 [num_steps, batch, h, w], one map a step: it decides what is renoised, or is
        the noise of the confidences.
      start_uniform: float32 [batch, h, w], decides what of an image is corrupted before the first
        step; only needed with `image_tokens`.
      initial: int32 [batch, h, w], the renoise sampler's noise; None draws it from the keys.
    """

    uniform: Array
    start_uniform: Array | None = None
    initial: Array | None = None


class Start(NamedTuple):
    """What a loop starts from; by default from noise, or masks, alone.

    Attributes:
      image_tokens: int [batch, h, w], clean tokens to start from: the fraction that the settings
        say is corrupted first.
      initial_tokens: int [batch, h, w] to start from instead, corrupted already.
      known: tokens to keep and where to draw; None draws everywhere.
      starting_mask_ratio: float32 scalar or [batch], of parallel decoding: the fraction that counts
        as masked at the start and that the schedule shrinks. Default: the fraction to draw of each
        sample's `known`, else 1. The reference takes the fraction over the whole batch.
      randomness: replaces what the keys would give, for tests against recorded runs.
      draw: replaces the settings' way of drawing in every step.
    """

    image_tokens: Array | None = None
    initial_tokens: Array | None = None
    known: Known | None = None
    starting_mask_ratio: Array | float | None = None
    randomness: Randomness | None = None
    draw: Draw | None = None

    def hold(self, tokens: Array) -> Array:
        """`tokens` with the kept ones put back, where there are any."""
        return tokens if self.known is None else self.known.hold(tokens)


FROM_NOISE = Start()


class Step(NamedTuple):
    """One step's inputs, stacked over steps for the scan.

    Attributes:
      number: from 0.
      t: the fraction of the tokens that is noise, or masked, before the step.
      t_next: the same after it.
      corrupt: False where the drawn tokens stay as they are, as after the last step.
      temperature: of the softmax.
      guidance_scale: of the prediction.
      uniform: float32 [batch, h, w], see `Randomness`.
      draw_keys: [batch], of the token draw.
      fresh_keys: [batch], of the renoise sampler's "fresh" noise.
      choice_temperature: of parallel decoding's noise on the confidences.
    """

    number: Array
    t: Array
    t_next: Array
    corrupt: Array
    temperature: Array
    guidance_scale: Array
    uniform: Array
    draw_keys: Array
    fresh_keys: Array | None = None
    choice_temperature: Array | None = None


def make_steps(levels: np.ndarray, corrupted: int, ramps: Ramps, **own: Array) -> Step:
    """Stacked steps between `levels` float32 [steps + 1], of which the first `corrupted` corrupt
    again; `own` are the fields that a sampler makes itself."""
    number = jnp.arange(len(levels) - 1)
    return Step(
        number=number,
        t=jnp.asarray(levels[:-1]),
        t_next=jnp.asarray(levels[1:]),
        corrupt=number < corrupted,
        temperature=jnp.asarray(ramps.temperature),
        guidance_scale=jnp.asarray(ramps.guidance_scale),
        **own,
    )


def keys_of_samples(key: Array, batch: int) -> Array:
    """One key per sample: `key` folded with 0..batch-1, or `key` itself where it is [batch].

    For other indices give `sample_keys(key, index)`: a sample's randomness is its key's alone.
    """
    return key if key.ndim == 1 else sample_keys(key, jnp.arange(batch))


def sample_keys_at(keys: Array, count: int | Array) -> Array:
    """Each sample's `count`-th key. keys [batch] -> [batch]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)


def step_keys(keys: Array, steps: int, per_step: int, which: int) -> Array:
    """One key per step and sample, of `per_step` a step. keys [batch] -> [steps, batch]."""
    return jax.vmap(partial(sample_keys_at, keys))(per_step * jnp.arange(steps) + which)


def randomness_of(keys: Array, grid: tuple[int, ...], steps: int, per_step: int) -> Randomness:
    """The uniform draws of a loop with `per_step` keys a step. keys [batch]."""
    maps = jax.vmap(partial(uniform_map, grid=grid))(step_keys(keys, steps, per_step, 1))
    return Randomness(maps, uniform_map(sample_keys_at(keys, START_KEY), grid))


def noise_of(vocabulary: Vocabulary) -> Callable[[Array, tuple[int, ...]], Array]:
    """What the network was trained to see in place of a token: (keys [batch], shape) -> int32."""
    mask_token: Any = vocabulary.mask_token

    def codes(keys: Array, shape: tuple[int, ...]) -> Array:
        return random_tokens(keys, shape[1:], vocabulary.size)

    def masks(keys: Array, shape: tuple[int, ...]) -> Array:
        return jnp.full(shape, mask_token, jnp.int32)

    return codes if mask_token is None else masks


def categorical(implementation: str) -> Draw:
    """Draws from softmax(logits / temperature), each sample with its own key."""
    one_sample = partial(draw_categorical, implementation=implementation)
    return lambda number, logits, keys: jax.vmap(one_sample)(keys, logits)


def level_of(mask_token: Any, known: Known | None) -> Callable[[Array, Step], Array]:
    """What the network is told as t, float32 [batch]: the schedule's level.

    Around kept tokens a network trained with masks is told the fraction of the whole map that is
    masked, as in training.
    """

    def scheduled(tokens: Array, step: Step) -> Array:
        return jnp.full((tokens.shape[0],), step.t)

    def masked_fraction(tokens: Array, step: Step) -> Array:
        return jnp.equal(tokens, mask_token).mean((1, 2), dtype=jnp.float32)

    return scheduled if mask_token is None or known is None else masked_fraction


def run(bodies: Sequence[tuple[int, int, Body]], carry: Any, steps: Any, trace: bool) -> Any:
    """The loop: one `lax.scan` for each range of steps that have the same body.

    Args:
      bodies: (first step, the step after the last, body), in order.
      carry: the tokens to start from, or whatever the bodies hand on.
      steps: a tree of arrays with the steps in front.
      trace: also stack what the bodies show.

    Returns:
      The last carry; with `trace`, a pair with what was shown, the steps that were run in front.
    """
    shown: list[Any] = []
    for first, end, body in bodies:
        part = jax.tree.map(lambda x, a=first, b=end: x[a:b], steps)
        silent = lambda carry, step, body=body: (body(carry, step)[0], None)
        carry, values = lax.scan(body if trace else silent, carry, part)
        shown.append(values)
    if not trace:
        return carry
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *shown)
