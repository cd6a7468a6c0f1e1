"""Samplers for Gaussian noise: DDPM, DDIM, DPM-Solver++ (docs/models/wuerstchen.md 5.3, 5.5).

The networks predict the noise. The whole loop is one `lax.scan`; its carry is the values and, for
the stepper that looks back, the last prediction of the clean values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paella_jax.noise.gaussian import CosineSchedule, clean_from_noise, diffuse, gaussian_noise
from paella_jax.sampling.diffusion_settings import DDPMSettings, DiffusionCourse
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.loop import Loop, run
from paella_jax.sampling.steppers import ddim_step, ddpm_step, dpm_corrections, dpm_step
from paella_jax.sampling.token_loop import keys_of_samples, sample_keys_at
from paella_jax.typing import Array

KNOWN_KEY = 2**31 - 1  # counts down from here, beyond the keys of any step's fresh noise


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
    start.check(shape)
    loop = plan(denoise, key, shape, settings, schedule, start, settings.course())
    out = run(loop, trace)
    return (out[0][0], out[1][0]) if trace else out[0]


def plan(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, ...],
    settings: DDPMSettings,
    schedule: CosineSchedule | None,
    start: GaussianStart,
    course: DiffusionCourse,
) -> Loop:
    """`sample` before it runs; its carry is (values, what the stepper remembers).

    Every step shows the values after it, and the clean values it predicted.

    Args:
      denoise: as in `sample`.
      key: as in `sample`.
      shape: as in `sample`.
      settings: or their `program`; what it leaves out is in the course.
      schedule: as in `sample`.
      start: as in `sample`.
      course: what differs from step to step; it may be traced.

    Raises:
      ValueError: see `DDPMSettings.check`.
    """
    settings.check()
    keys, count, known = keys_of_samples(key, shape[0]), len(course.times) - 1, start.known
    alpha_bar = (schedule or CosineSchedule()).alpha_bar(jnp.asarray(course.times))
    draw = partial(gaussian_noise, shape=shape[1:])
    noise_of = draw if start.randomness is None else lambda noise: noise
    given = start.randomness or GaussianRandomness(
        draw(sample_keys_at(keys, 0)), *_step_keys(keys, count, known is not None)
    )
    advance = _stepper(settings.stepper, noise_of)

    def hold(x: Array, step: DiffusionStep) -> Array:
        return x if known is None else known.hold(x, noise_of(step.known), step.alpha_bar)

    def body(carry: tuple[Array, Any], step: DiffusionStep) -> tuple[Any, Any]:
        """Put kept values back, predict the noise, go to the next level."""
        x = hold(carry[0], step)
        t = jnp.full((shape[0],), step.t)
        noise = denoise(x, t, step.scale).astype(jnp.float32)
        after, memory = advance(x, noise, carry[1], step)
        return (after, memory), (after, clean_from_noise(x, noise, step.alpha_bar))

    first = given.initial if start.initial is None else start.initial.astype(jnp.float32)
    if start.image is not None:
        first = diffuse(start.image, given.initial, alpha_bar[0])
    previous = jnp.zeros_like(first) if settings.stepper == "dpm++" else None
    steps = _steps(course, alpha_bar, given)
    return Loop((first, previous), steps, [body], course.edges)


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


def _steps(course: DiffusionCourse, alpha_bar: Array, given: GaussianRandomness) -> DiffusionStep:
    times = jnp.asarray(course.times)
    return DiffusionStep(
        t=times[:-1],
        alpha_bar=alpha_bar[:-1],
        alpha_bar_next=alpha_bar[1:],
        last=times[1:] == 0,
        correction=dpm_corrections(alpha_bar, course.edges[-1]),
        scale=None if course.guidance_scale is None else jnp.asarray(course.guidance_scale),
        fresh=given.fresh,
        known=given.known,
    )
