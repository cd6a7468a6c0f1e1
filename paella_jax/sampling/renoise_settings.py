"""Settings of the renoise sampler: meaning, limits, and what of them is compiled."""

from __future__ import annotations

import numpy as np
from flax import struct

from paella_jax.sampling.schedule import linear_ramp
from paella_jax.sampling.token_loop import Course, LoopSettings, Ramps

RENOISE_MODES = ("initial", "previous", "fresh")
RENOISE_CHOICES = ("random", "confidence")
DRAWS = ("categorical", "argmax", "quantize")


@struct.dataclass
class RenoiseSettings(LoopSettings):
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
        self.require(self.num_steps >= 1, "num_steps", "at least 1")
        self.require(0 <= self.t_end <= 1, "t_end", "in [0, 1]")
        self.require(self.t_end < self.t_start <= 1, "t_start", "in (t_end, 1]")
        ok = all(0 < x < np.inf for x in self.temperature)
        self.require(ok, "temperature", "above 0 and finite")
        self.require(bool(np.isfinite(self.guidance_scale).all()), "guidance_scale", "finite")
        self.require(self.renoise_mode in RENOISE_MODES, "renoise_mode", RENOISE_MODES)
        self.require(self.renoise_choice in RENOISE_CHOICES, "renoise_choice", RENOISE_CHOICES)
        self.require(self.draw in DRAWS, "draw", DRAWS)
        for name in ("guided_steps", "renoise_steps", "quantize_from_step"):
            steps = getattr(self, name)
            self.require(steps is None or steps >= 0, name, "at least 0, or None")
        mass = self.typical_mass
        self.require(mass is None or 0 < mass < 1, "typical_mass", "in (0, 1) or None")
        self.require(self.typical_min_tokens >= 1, "typical_min_tokens", "at least 1")

    def check_masked(self) -> None:
        """Raises ValueError for what only a network trained with random tokens can do."""
        why = "for a network trained with masks"
        wanted = f"'initial' {why}: masks have no other source"
        self.require(self.renoise_mode == "initial", "renoise_mode", wanted)
        wanted = f"'random' {why}; its lowest-confidence sampler is parallel decoding"
        self.require(self.renoise_choice == "random", "renoise_choice", wanted)

    def ranges(self) -> tuple[list[tuple[bool, str]], list[int]]:
        """The ranges of steps with the same body: (guided, draw) of each, and their edges."""
        count = self.num_steps
        guided = count if self.guided_steps is None else min(self.guided_steps, count)
        if not self.guided:
            guided = 0
        switch = self.quantize_from_step
        switch = count if switch is None else min(switch, count)
        edges = sorted({0, guided, switch, count})
        return [(a < guided, self.draw if a < switch else "quantize") for a in edges[:-1]], edges

    def course(self, ramps: Ramps | None = None) -> Course:
        """What differs from step to step; `ramps` replaces the settings'."""
        count = self.num_steps
        renoised = count - 1 if self.renoise_steps is None else min(self.renoise_steps, count - 1)
        return Course.of(
            linear_ramp(self.t_start, self.t_end, count + 1),
            renoised,
            ramps or self.ramps(),
            start=np.float32(self.t_start),
            edges=np.asarray(self.ranges()[1], np.int32),
        )

    def program(self) -> RenoiseSettings:
        """The same for all settings that differ in their course alone: one step for each range."""
        edges = self.ranges()[1]

        def place(step: int | None) -> int | None:
            if step is None or min(step, self.num_steps) == edges[-1]:
                return None
            return edges.index(step)

        return self.without_ramps(
            num_steps=len(edges) - 1,
            t_start=1.0,
            t_end=0.0,
            renoise_steps=None,
            guided_steps=place(self.guided_steps) if self.guided else None,
            quantize_from_step=place(self.quantize_from_step),
        )
