"""Samplers for Gaussian noise: DDPM, DDIM, DPM-Solver++ (docs/models/wuerstchen.md 5.3, 5.5).

The whole loop is one `lax.scan`; its carry is the values (DPM-Solver++: and the last prediction of
the clean values). The networks predict the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from paella_jax.noise.gaussian import (
    CosineSchedule,
    clean_from_noise,
    diffuse,
    gaussian_noise,
    per_sample,
)
from paella_jax.noise.tokens import sample_keys
from paella_jax.sampling.dpm_solver import dpm_corrections, dpm_step
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.schedule import linear_ramp
from paella_jax.typing import Array

# Values, and the clean values predicted in the step before (None unless the stepper is "dpm++").
Carry = tuple[Array, Any]
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

    num_steps: int = struct.field(pytree_node=False, default=60)
    guidance_scale: float | tuple[float, float] = struct.field(pytree_node=False, default=1.0)
    evaluate_at_one: bool = struct.field(pytree_node=False, default=True)
    t_start: float = struct.field(pytree_node=False, default=1.0)
    time_points: tuple[float, ...] | None = struct.field(pytree_node=False, default=None)
    stepper: str = struct.field(pytree_node=False, default="ddpm")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        _require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        scale, start = self.guidance_scale, self.t_start
        ramp = scale if isinstance(scale, tuple) else (scale, scale)
        fits = len(ramp) == 2 and min(ramp) >= 0
        _require(fits, "guidance_scale", scale, "at least 0, or a pair (first, last) of such")
        _require(self.stepper in STEPPERS, "stepper", self.stepper, f"one of {STEPPERS}")
        points = self.time_points
        if points is not None:
            falling = len(points) >= 2 and all(a > b for a, b in pairwise(points))
            inside = falling and points[0] <= 1 and points[-1] >= 0
            _require(inside, "time_points", points, "at least two strictly falling levels in [0,1]")
        end = 0.0 if points is None else points[-1]
        _require(end < start <= 1, "t_start", start, f"above {end}, where sampling ends, up to 1")

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
        scale = self.guidance_scale
        ramp = scale if isinstance(scale, tuple) else (scale, scale)
        return None if ramp == (1, 1) else linear_ramp(*ramp, steps)


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ValueError(f"sampler setting {name}={value!r} must be {wanted}")


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


def ddpm_step(
    x: Array, noise: Array, fresh: Array, alpha_bar: Array, alpha_bar_next: Array, last: Array
) -> Array:
    """One ancestral step; x0 is not clipped.

    Args:
      x: float32 [batch, ...] at the current level.
      noise: the predicted noise in it.
      fresh: new unit noise.
      alpha_bar: float32 [batch] or scalar, of the current level. So is `alpha_bar_next`, of the
        next one.
      alpha_bar_next: see `alpha_bar`.
      last: bool [batch] or scalar, True where the next level is 0: nothing fresh is added.

    Returns:
      float32 [batch, ...] at the next level.
    """
    current, following = per_sample(alpha_bar, x), per_sample(alpha_bar_next, x)
    alpha = current / following
    mean = jnp.sqrt(1.0 / alpha) * (x - (1.0 - alpha) * noise / jnp.sqrt(1.0 - current))
    deviation = jnp.sqrt((1.0 - alpha) * (1.0 - following) / (1.0 - current))
    return mean + jnp.where(per_sample(last, x), 0.0, deviation) * fresh


def ddim_step(x: Array, noise: Array, alpha_bar: Array, alpha_bar_next: Array) -> Array:
    """One deterministic step; arguments as in `ddpm_step`."""
    return diffuse(clean_from_noise(x, noise, alpha_bar), noise, alpha_bar_next)


class Randomness(NamedTuple):
    """Everything random.

    Attributes:
      initial: float32 [batch, ...].
      fresh: float32 [steps, batch, ...]; the last step's is not used when it ends at 0.
      known: float32 [steps, batch, ...], the noise in kept values; only needed with `known`.
    """

    initial: Array
    fresh: Array
    known: Array | None = None


class Known(NamedTuple):
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


class Step(NamedTuple):
    """One step's inputs, stacked over steps for the scan."""

    t: Array
    alpha_bar: Array
    alpha_bar_next: Array
    last: Array
    correction: Array
    scale: Array | None  # of guidance
    fresh: Array  # noise [batch, ...] where it is given, otherwise keys [batch]
    known: Any  # the same for `Known.hold`, or None


def sample(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, ...],
    settings: DDPMSettings,
    *,
    schedule: CosineSchedule | None = None,
    initial: Array | None = None,
    image: Array | None = None,
    known: Known | None = None,
    sample_index: Array | None = None,
    randomness: Randomness | None = None,
    trace: bool = False,
) -> Any:
    """Draws values from noise.

    Args:
      denoise: guided noise prediction (x [batch, ...], t [batch], scale) -> [batch, ...], see
        sampling/guidance.py. Called once per step.
      key: PRNG key, or [batch] keys, one per sample.
      shape: (batch, ...).
      settings: see `DDPMSettings`.
      schedule: the one the network was trained with; default `CosineSchedule()`.
      initial: values at the first time point; None starts from unit noise.
      image: clean values to start from instead (image to image): the noise of the first time
        point, `settings.t_start`, is added to them.
      known: values that are kept, each step's input holds them at its noise level. The result has
        what the last step made of them.
      sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.
        Default 0..batch-1.
      randomness: replaces what is drawn from the keys, for tests against recorded runs.
      trace: also return the values after every step.

    Returns:
      float32 `shape`; with `trace`, a pair with float32 [steps, *shape].

    Raises:
      ValueError: see `DDPMSettings.check`; `initial` together with `image`, or an array of
        another shape.
    """
    settings.check()
    _check_arrays(shape, initial, image, known)
    times = settings.times()
    count = len(times) - 1
    index = jnp.arange(shape[0]) if sample_index is None else sample_index
    keys = key if key.ndim == 1 else sample_keys(key, index)
    draw = partial(gaussian_noise, shape=shape[1:])
    keys_at = lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    numbers = jnp.arange(count)
    given = randomness or Randomness(
        draw(keys_at(0)),
        jax.vmap(keys_at)(1 + numbers),
        None if known is None else jax.vmap(keys_at)(KNOWN_KEY - numbers),
    )
    if known is not None and given.known is None:
        raise ValueError("known values need their noise: randomness.known is missing")
    noise_of = draw if randomness is None else lambda noise: noise
    alpha_bar = (schedule or CosineSchedule()).alpha_bar(jnp.asarray(times))
    guidance = settings.guidance(count)
    steps = Step(
        t=jnp.asarray(times[:-1]),
        alpha_bar=alpha_bar[:-1],
        alpha_bar_next=alpha_bar[1:],
        last=jnp.asarray(times[1:] == 0),
        correction=dpm_corrections(alpha_bar),
        scale=None if guidance is None else jnp.asarray(guidance),
        fresh=given.fresh,
        known=given.known,
    )

    def body(carry: Carry, step: Step) -> tuple[Carry, Array | None]:
        x, previous = carry
        if known is not None:
            x = known.hold(x, noise_of(step.known), step.alpha_bar)
        noise = denoise(x, jnp.full((shape[0],), step.t), step.scale).astype(jnp.float32)
        levels = step.alpha_bar, step.alpha_bar_next
        if settings.stepper == "dpm++":
            clean = clean_from_noise(x, noise, step.alpha_bar)
            x, previous = dpm_step(x, clean, previous, step.correction, *levels), clean
        elif settings.stepper == "ddim":
            x = ddim_step(x, noise, *levels)
        else:
            x = ddpm_step(x, noise, noise_of(step.fresh), *levels, step.last)
        return (x, previous), x if trace else None

    first = given.initial if initial is None else initial.astype(jnp.float32)
    if image is not None:
        first = diffuse(image, given.initial, alpha_bar[0])
    previous = jnp.zeros_like(first) if settings.stepper == "dpm++" else None
    (x, _), visited = lax.scan(body, (first, previous), steps)
    return (x, visited) if trace else x


def _check_arrays(
    shape: tuple[int, ...], initial: Array | None, image: Array | None, known: Known | None
) -> None:
    if initial is not None and image is not None:
        raise ValueError("give either initial (noised values) or image (clean ones), not both")
    given = {"initial": initial, "image": image, "known.values": known and known.values}
    for name, array in given.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, the sampler draws {shape}")
    if known is not None:
        mask = known.generate.shape
        fits = len(mask) == len(shape) and all(
            m in (1, s) for m, s in zip(mask, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"known.generate has shape {mask}, which does not fit {shape}")
