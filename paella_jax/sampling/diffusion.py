"""Samplers for Gaussian noise: DDPM, DDIM, DPM-Solver++ (docs/models/wuerstchen.md 5.3, 5.5).

The networks predict the noise. The whole loop is one `lax.scan`; its carry is the values and, for
the stepper that looks back, the last prediction of the clean values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from paella_jax.noise.gaussian import CosineSchedule, clean_from_noise, diffuse, gaussian_noise
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.schedule import linear_ramp, require
from paella_jax.sampling.steppers import ddim_step, ddpm_step, dpm_corrections, dpm_step
from paella_jax.sampling.token_loop import keys_of_samples, run, sample_keys_at
from paella_jax.typing import Array

STEPPERS = ("ddpm", "ddim", "dpm++")
KNOWN_KEY = 2**31 - 1  # counts down from here, beyond the keys of any step's fresh noise


@struct.dataclass
class DDPMSettings:
    """Settings of the Gaussian samplers; all static.

    Attributes:
      num_steps: predictions made.
      guidance_scale: one value, or the (first, last) step's with a linear ramp in between; 1 is
        no guidance.
      evaluate_at_one: the first prediction is made at t = 1 (Wuerstchen). Otherwise the steps + 2
        points from 1 to 0 lose their first, so that t = 1 is never evaluated (the CLIP prior).
      t_start: where the points start instead of 1 (image to image).
      time_points: explicit levels instead, strictly falling: one prediction at each but the last,
        which is where the sampler ends. `num_steps` and `evaluate_at_one` are then not read; with
        `t_start` below 1, it comes first and only the points below it are kept.
      stepper: "ddpm" draws fresh noise in every step but the last, "ddim" draws none. "dpm++" is
        DPM-Solver++(2M): no noise either, second order, for few steps.
    """

    named: ClassVar[str] = "sampler setting "
    num_steps: int = struct.field(pytree_node=False, default=60)
    guidance_scale: float | tuple[float, float] = struct.field(pytree_node=False, default=1.0)
    evaluate_at_one: bool = struct.field(pytree_node=False, default=True)
    t_start: float = struct.field(pytree_node=False, default=1.0)
    time_points: tuple[float, ...] | None = struct.field(pytree_node=False, default=None)
    stepper: str = struct.field(pytree_node=False, default="ddpm")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        require(self.num_steps >= 1, self, "num_steps", "at least 1")
        ramp = self._ramp()
        fits = len(ramp) == 2 and min(ramp) >= 0
        require(fits, self, "guidance_scale", "at least 0, or a pair (first, last) of such")
        require(self.stepper in STEPPERS, self, "stepper", f"one of {STEPPERS}")
        points, end = self.time_points, 0.0
        if points is not None:
            falling = len(points) >= 2 and all(a > b for a, b in pairwise(points))
            inside = falling and points[0] <= 1 and points[-1] >= 0
            wanted = "at least two strictly falling levels in [0,1]"
            require(inside, self, "time_points", wanted)
            end = points[-1]
        wanted = f"above {end}, where sampling ends, up to 1"
        require(end < self.t_start <= 1, self, "t_start", wanted)

    def times(self) -> np.ndarray:
        """float32 [steps + 1]: where predictions are made, and where the last step ends."""
        if self.time_points is not None:
            points = np.asarray(self.time_points, np.float32)
            start = np.float32(self.t_start)
            return points if start == 1 else np.append(start, points[points < start])
        if self.evaluate_at_one:
            return linear_ramp(self.t_start, 0.0, self.num_steps + 1)
        return linear_ramp(self.t_start, 0.0, self.num_steps + 2)[1:]

    def guidance(self, steps: int) -> np.ndarray | None:
        """float32 [steps], or None where guidance is off."""
        ramp = self._ramp()
        return None if ramp == (1, 1) else linear_ramp(*ramp, steps)

    def _ramp(self) -> tuple[float, float]:
        scale = self.guidance_scale
        return scale if isinstance(scale, tuple) else (scale, scale)


def segment_times(edges: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    """Explicit time points of consecutive ranges, each with its own number of steps.

    Wuerstchen's Stage C: `segment_times((1, 2 / 3, 0), (20, 10))`.

    Raises:
      ValueError: not one number of steps per range.
    """
    if len(edges) != len(steps) + 1:
        raise ValueError(f"{len(steps)} step counts need {len(steps) + 1} edges, got {len(edges)}")
    points = [float(np.float32(edges[0]))]
    for (start, stop), count in zip(pairwise(edges), steps, strict=True):
        points += [float(t) for t in linear_ramp(start, stop, count + 1)[1:]]
    return tuple(points)


class GaussianRandomness(NamedTuple):
    """Everything random.

    Attributes:
      initial: float32 [batch, ...].
      fresh: float32 [steps, batch, ...]; the last step's is not used when it ends at 0.
      known: float32 [steps, batch, ...], the noise in kept values; only needed with those.
    """

    initial: Array
    fresh: Array
    known: Array | None = None


class KnownValues(NamedTuple):
    """Values that stay as they are: inpainting.

    Attributes:
      values: float [batch, ...], clean; only read where they are kept.
      generate: bool, or float in between 0 and 1, of a shape that broadcasts against them with as
        many axes. 1 where the sampler draws.
    """

    values: Array | np.ndarray
    generate: Array | np.ndarray

    def hold(self, x: Array, noise: Array, alpha_bar: Array) -> Array:
        """`x` with the kept values put back at the noise level of `alpha_bar`."""
        generate = jnp.asarray(self.generate, jnp.float32)
        return x * generate + diffuse(jnp.asarray(self.values), noise, alpha_bar) * (1.0 - generate)


class GaussianStart(NamedTuple):
    """What a drawing starts from; by default from unit noise.

    Attributes:
      image: clean values to start from (image to image): the noise of the first time point,
        `settings.t_start`, is added to them.
      initial: values at the first time point instead.
      known: values that are kept: each step's input holds them at its noise level. The result has
        what the last step made of them.
      randomness: replaces what is drawn from the keys, for tests against recorded runs.
    """

    image: Array | None = None
    initial: Array | None = None
    known: KnownValues | None = None
    randomness: GaussianRandomness | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for arrays that do not belong together or have another shape."""
        if self.initial is not None and self.image is not None:
            raise ValueError("give either initial (noised values) or image (clean ones), not both")
        known = self.known
        given = {"initial": self.initial, "image": self.image, "known.values": known and known[0]}
        for name, array in given.items():
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, the sampler draws {shape}")
        if known is None:
            return
        mask = known.generate.shape
        if len(mask) != len(shape) or any(
            m not in (1, s) for m, s in zip(mask, shape, strict=True)
        ):
            raise ValueError(f"known.generate has shape {mask}, which does not fit {shape}")
        if self.randomness is not None and self.randomness.known is None:
            raise ValueError("known values need their noise: randomness.known is missing")


FROM_UNIT_NOISE = GaussianStart()


class DiffusionStep(NamedTuple):
    """One step's inputs, stacked over steps for the scan."""

    t: Array
    alpha_bar: Array
    alpha_bar_next: Array
    last: Array
    correction: Array  # of `dpm_step`
    scale: Array | None  # of guidance
    fresh: Array  # noise [batch, ...] where it is given, otherwise keys [batch]
    known: Any  # the same for `KnownValues.hold`, or None


# (x, predicted noise, the last clean prediction or None, step) -> the next x and clean prediction
Stepper = Callable[[Array, Array, Any, DiffusionStep], tuple[Array, Any]]


def sample(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, ...],
    settings: DDPMSettings,
    schedule: CosineSchedule | None = None,
    start: GaussianStart = FROM_UNIT_NOISE,
    trace: bool = False,
) -> Any:
    """Draws values from noise.

    Args:
      denoise: guided noise prediction (x [batch, ...], t [batch], scale) -> [batch, ...], see
        sampling/guidance.py. Called once per step.
      key: PRNG key, or [batch] keys, one per sample, of which alone its randomness comes.
      shape: (batch, ...).
      settings: see `DDPMSettings`.
      schedule: the one the network was trained with; default `CosineSchedule()`.
      start: what to start from and to keep.
      trace: also return the values after every step.

    Returns:
      float32 `shape`; with `trace`, a pair with float32 [steps, *shape].

    Raises:
      ValueError: see `DDPMSettings.check` and `GaussianStart.check`.
    """
    settings.check()
    start.check(shape)
    keys, times, known = keys_of_samples(key, shape[0]), settings.times(), start.known
    alpha_bar = (schedule or CosineSchedule()).alpha_bar(jnp.asarray(times))
    draw = partial(gaussian_noise, shape=shape[1:])
    noise_of = draw if start.randomness is None else lambda noise: noise
    given = start.randomness or GaussianRandomness(
        draw(sample_keys_at(keys, 0)), *_step_keys(keys, len(times) - 1, known is not None)
    )
    advance = _stepper(settings.stepper, noise_of)

    def hold(x: Array, step: DiffusionStep) -> Array:
        return x if known is None else known.hold(x, noise_of(step.known), step.alpha_bar)

    def body(carry: tuple[Array, Any], step: DiffusionStep) -> tuple[Any, Array]:
        """Put kept values back, predict the noise, go to the next level."""
        x = hold(carry[0], step)
        t = jnp.full((shape[0],), step.t)
        noise = denoise(x, t, step.scale).astype(jnp.float32)
        after, clean = advance(x, noise, carry[1], step)
        return (after, clean), after

    first = given.initial if start.initial is None else start.initial.astype(jnp.float32)
    if start.image is not None:
        first = diffuse(start.image, given.initial, alpha_bar[0])
    previous = jnp.zeros_like(first) if settings.stepper == "dpm++" else None
    steps = _steps(settings, times, alpha_bar, given)
    out = run([(0, len(times) - 1, body)], (first, previous), steps, trace)
    return (out[0][0], out[1]) if trace else out[0]


def _stepper(name: str, noise_of: Callable[[Array], Array]) -> Stepper:
    levels = lambda step: (step.alpha_bar, step.alpha_bar_next)

    def ddpm(x: Array, noise: Array, previous: Any, step: DiffusionStep) -> tuple[Array, Any]:
        return ddpm_step(x, noise, noise_of(step.fresh), *levels(step), step.last), None

    def ddim(x: Array, noise: Array, previous: Any, step: DiffusionStep) -> tuple[Array, Any]:
        return ddim_step(x, noise, *levels(step)), None

    def dpm(x: Array, noise: Array, previous: Any, step: DiffusionStep) -> tuple[Array, Any]:
        clean = clean_from_noise(x, noise, step.alpha_bar)
        return dpm_step(x, clean, previous, step.correction, *levels(step)), clean

    return {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm}[name]


def _step_keys(keys: Array, count: int, known: bool) -> tuple[Array, Array | None]:
    """Keys [steps, batch] of the fresh noise, and of the noise in kept values if there are any."""
    numbers = jnp.arange(count)
    keys_at = jax.vmap(partial(sample_keys_at, keys))
    return keys_at(1 + numbers), keys_at(KNOWN_KEY - numbers) if known else None


def _steps(
    settings: DDPMSettings, times: np.ndarray, alpha_bar: Array, given: GaussianRandomness
) -> DiffusionStep:
    guidance = settings.guidance(len(times) - 1)
    return DiffusionStep(
        t=jnp.asarray(times[:-1]),
        alpha_bar=alpha_bar[:-1],
        alpha_bar_next=alpha_bar[1:],
        last=jnp.asarray(times[1:] == 0),
        correction=dpm_corrections(alpha_bar),
        scale=None if guidance is None else jnp.asarray(guidance),
        fresh=given.fresh,
        known=given.known,
    )
