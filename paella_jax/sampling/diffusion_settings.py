"""Settings of the Gaussian samplers: time points, guidance, what of them is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flax import struct

from paella_jax.sampling.schedule import check_types, linear_ramp, require

STEPPERS = ("ddpm", "ddim", "dpm++")


class DiffusionCourse(NamedTuple):
    """All that differs from step to step, as arrays, so that one program serves every course.

    Attributes:
      times: float32 [steps + 1], where predictions are made, and where the last step ends.
      guidance_scale: float32 [steps]; None is no guidance.
      edges: int32 [2], the first step and the number of them.
    """

    times: Any
    guidance_scale: Any
    edges: Any


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
        check_types(self)
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

    def course(self) -> DiffusionCourse:
        """What differs from step to step."""
        times, ramp = self.times(), self._ramp()
        scale = None if ramp == (1, 1) else linear_ramp(*ramp, len(times) - 1)
        return DiffusionCourse(times, scale, np.asarray([0, len(times) - 1], np.int32))

    def program(self) -> DDPMSettings:
        """The same for all settings that differ in their course alone."""
        return DDPMSettings(stepper=self.stepper)

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
