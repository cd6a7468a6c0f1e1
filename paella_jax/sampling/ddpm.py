"""Samplers for Gaussian noise: DDPM and DDIM (reference/wuerstchen.md 5.3, 5.5; paella.md 4.3).

The whole loop is one `lax.scan`; its carry is the values alone. The networks predict the noise.
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
from paella_jax.sampling.guidance import Denoise
from paella_jax.sampling.schedule import linear_ramp

Array = jax.Array
STEPPERS = ("ddpm", "ddim")


@struct.dataclass
class DDPMSettings:
    """Settings of the Gaussian samplers; all static.

    Attributes:
      num_steps: predictions made.
      guidance_scale: 1 is no guidance.
      evaluate_at_one: the first prediction is made at t = 1 (Wuerstchen). Otherwise the steps + 2
        points from 1 to 0 lose their first, so that t = 1 is never evaluated (the CLIP prior).
      time_points: explicit levels instead, strictly falling: one prediction at each but the last,
        which is where the sampler ends. `num_steps` and `evaluate_at_one` are then not read.
      stepper: "ddpm" draws fresh noise in every step but the last, "ddim" draws none.
    """

    num_steps: int = struct.field(pytree_node=False, default=60)
    guidance_scale: float = struct.field(pytree_node=False, default=1.0)
    evaluate_at_one: bool = struct.field(pytree_node=False, default=True)
    time_points: tuple[float, ...] | None = struct.field(pytree_node=False, default=None)
    stepper: str = struct.field(pytree_node=False, default="ddpm")

    def check(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        _require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        _require(self.guidance_scale >= 0, "guidance_scale", self.guidance_scale, "at least 0")
        _require(self.stepper in STEPPERS, "stepper", self.stepper, f"one of {STEPPERS}")
        points = self.time_points
        if points is not None:
            falling = len(points) >= 2 and all(a > b for a, b in pairwise(points))
            inside = falling and points[0] <= 1 and points[-1] >= 0
            _require(inside, "time_points", points, "at least two strictly falling levels in [0,1]")

    def times(self) -> np.ndarray:
        """float32 [steps + 1]: where predictions are made, and where the last step ends."""
        if self.time_points is not None:
            return np.asarray(self.time_points, np.float32)
        if self.evaluate_at_one:
            return linear_ramp(1.0, 0.0, self.num_steps + 1)
        return linear_ramp(1.0, 0.0, self.num_steps + 2)[1:]


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
    """

    initial: Array
    fresh: Array


class Step(NamedTuple):
    """One step's inputs, stacked over steps for the scan."""

    t: Array
    alpha_bar: Array
    alpha_bar_next: Array
    last: Array
    fresh: Array  # noise [batch, ...] where it is given, otherwise keys [batch]


def sample(
    denoise: Denoise,
    key: Array,
    shape: tuple[int, ...],
    settings: DDPMSettings,
    *,
    schedule: CosineSchedule | None = None,
    initial: Array | None = None,
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
      initial: values at the first time point, for starting from a noised image; None starts from
        unit noise.
      sample_index: int [batch]; sample i's randomness comes from (key, sample_index[i]) alone.
        Default 0..batch-1.
      randomness: replaces what is drawn from the keys, for tests against recorded runs.
      trace: also return the values after every step.

    Returns:
      float32 `shape`; with `trace`, a pair with float32 [steps, *shape].

    Raises:
      ValueError: see `DDPMSettings.check`.
    """
    settings.check()
    index = jnp.arange(shape[0]) if sample_index is None else sample_index
    keys = key if key.ndim == 1 else sample_keys(key, index)
    times = settings.times()
    draw = partial(gaussian_noise, shape=shape[1:])
    keys_at = lambda count: jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
    start, fresh = randomness or (draw(keys_at(0)), jax.vmap(keys_at)(jnp.arange(1, len(times))))
    alpha_bar = (schedule or CosineSchedule()).alpha_bar(jnp.asarray(times))
    steps = Step(
        t=jnp.asarray(times[:-1]),
        alpha_bar=alpha_bar[:-1],
        alpha_bar_next=alpha_bar[1:],
        last=jnp.asarray(times[1:] == 0),
        fresh=fresh,
    )
    scale = None if settings.guidance_scale == 1 else jnp.float32(settings.guidance_scale)

    def body(x: Array, step: Step) -> tuple[Array, Array | None]:
        noise = denoise(x, jnp.full((shape[0],), step.t), scale).astype(jnp.float32)
        levels = step.alpha_bar, step.alpha_bar_next
        if settings.stepper == "ddim":
            x = ddim_step(x, noise, *levels)
        else:
            fresh = draw(step.fresh) if randomness is None else step.fresh
            x = ddpm_step(x, noise, fresh, *levels, step.last)
        return x, x if trace else None

    first = start if initial is None else initial.astype(jnp.float32)
    x, visited = lax.scan(body, first, steps)
    return (x, visited) if trace else x
