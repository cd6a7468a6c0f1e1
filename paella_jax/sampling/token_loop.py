"""The frame that the token samplers share: settings, keys, where a loop starts, and its scan.

Everything that a setting decides is chosen before the scan, as a small function that each sampler's
body calls; the carry is the tokens, and logits are never stored across steps. A sampler makes a
`Loop` (loop.py) of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.noise.tokens import random_tokens, sample_keys, uniform_map
from paella_jax.ops.categorical import draw_categorical
from paella_jax.sampling.loop import Body
from paella_jax.sampling.schedule import linear_ramp, require
from paella_jax.typing import Array

START_KEY = 2**31 - 1  # beyond the keys of any step

# (step's number, logits / temperature [batch, h, w, codes], keys [batch]) -> [batch, h, w]
Draw = Callable[[Array, Array, Array], Array]


class Ramps(NamedTuple):
    """The user's per-step values; float32 [num_steps] each."""

    temperature: Any
    guidance_scale: Any


class Course(NamedTuple):
    """All that differs from step to step: arrays, so that one program serves every course.

    Attributes:
      t: float32 [steps], the fraction of the tokens that is noise, or masked, before each step.
      t_next: the same after it.
      corrupt: bool [steps], False where the drawn tokens stay as they are, as after the last step.
      temperature: float32 [steps], of the softmax.
      guidance_scale: float32 [steps], of the prediction.
      start: float32 scalar, the fraction of an image's tokens that is corrupted before the first
        step.
      edges: int32 [bodies + 1], the first step of each of the loop's bodies, and where it ends.
      choice_temperature: float32 [steps], of parallel decoding's noise on the confidences.
    """

    t: Any
    t_next: Any
    corrupt: Any
    temperature: Any
    guidance_scale: Any
    start: Any
    edges: Any
    choice_temperature: Any = None

    @classmethod
    def of(cls, levels: np.ndarray, corrupted: int, ramps: Ramps, **own: Any) -> Course:
        """Between `levels` float32 [steps + 1], the first `corrupted` steps corrupting again."""
        corrupt = np.arange(len(levels) - 1) < corrupted
        return cls(levels[:-1], levels[1:], corrupt, *ramps, **own)


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

    def course(self, ramps: Ramps | None = None) -> Any:
        """What differs from step to step, as arrays; `ramps` replaces the settings'."""
        raise NotImplementedError

    def shown_after(self) -> range:
        """The numbers of the steps that are run, from 1; each shows complete tokens."""
        edges = self.course().edges
        return range(int(edges[0]) + 1, int(edges[-1]) + 1)

    def traced_steps(self) -> list[int]:
        """Those of them after which a trace keeps the tokens."""
        return list(self.shown_after())

    def require(self, ok: bool, name: str, wanted: object) -> None:
        """Raises ValueError naming a setting and its value, unless `ok`."""
        require(ok, self, name, wanted)

    def ramps(self) -> Ramps:
        """Softmax temperature and guidance of every step."""
        return Ramps(
            linear_ramp(*self.temperature, self.steps),
            linear_ramp(*self.guidance_scale, self.steps),
        )

    def without_ramps(self, **fixed: Any) -> Self:
        """The same for every temperature and guidance: a program compiled for it serves them all,
        given `ramps` as an argument. `fixed` are further fields that are arguments as well."""
        scale = (2.0, 2.0) if self.guided else (1.0, 1.0)
        settings: Any = self
        return dataclasses.replace(settings, temperature=(1.0, 1.0), guidance_scale=scale, **fixed)


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
        the noise of the confidences. Keys [num_steps, batch] where each step draws its own.
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


def make_steps(course: Course, **own: Any) -> Step:
    """A course's stacked steps; `own` are the fields that a sampler makes itself."""
    shared = ("t", "t_next", "corrupt", "temperature", "guidance_scale", "choice_temperature")
    fields = {name: getattr(course, name) for name in shared}
    arrays: dict[str, Any] = {
        name: None if x is None else jnp.asarray(x) for name, x in fields.items()
    }
    return Step(number=jnp.arange(len(course.t)), **arrays, **own)


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
    start = uniform_map(sample_keys_at(keys, START_KEY), grid)
    return Randomness(step_keys(keys, steps, per_step, 1), start)


def with_uniform(body: Body, given: Randomness | None, grid: tuple[int, ...]) -> Body:
    """A body whose step has its uniform map: as `given`, else drawn from the step's own keys."""
    draw = lambda step: step._replace(uniform=uniform_map(step.uniform, grid))
    return body if given is not None else lambda carry, step: body(carry, draw(step))


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
