"""Würstchen's stages as calls of a few programs, each stage's weights on the device in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.families.text_side import TextSide
from paella_jax.files.finite import is_finite
from paella_jax.images.read import read_images
from paella_jax.pipelines.base import Job
from paella_jax.pipelines.batches import (
    Numbered,
    checked_seeds,
    in_batches,
    on_mesh,
    one_per_prompt,
)
from paella_jax.pipelines.geometry import check_side
from paella_jax.pipelines.watch import in_groups
from paella_jax.pipelines.wuerstchen_programs import (
    StageRequest,
    advance_stage,
    empty_state,
    encode_texts,
    plan_b,
    plan_c,
    raw_latents,
    stage_b_settings,
    stage_c_settings,
    steps_of,
)
from paella_jax.pipelines.wuerstchen_texts import checked_texts
from paella_jax.sampling.diffusion_settings import DDPMSettings
from paella_jax.training.placing import batch_sharding, fetch, place
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree

NO_COMPRESSOR = (
    "this run has no compressor, as diffusers' folders have none: it draws from text, but cannot "
    "encode or reconstruct images; convert it again with --compressor model_v2_stage_b.pt"
)
Shape = tuple[int, int, int]  # of latents: height, width, channels
STAGE_B, STAGE_C = "Stage B's text encoder", "Stage C's text encoder"  # in messages
PREVIEW_STEPS = 3  # of Stage B, in a look at Stage C's latents


class WuerstchenGeneration(NamedTuple):
    """Images with the latents behind them.

    Attributes:
      images: float32 [count, height, width, 3] in [0, 1].
      latents_c: float32 [count, h, w, C], Stage C's, raw scale; `decode` takes them again.
      latents_b: float32 [count, height / 4, width / 4, 4], Stage B's, scaled.
      trace: float32 [steps, count, h, w, C], Stage C's latents after every step; None unless asked.
    """

    images: np.ndarray
    latents_c: np.ndarray
    latents_b: np.ndarray
    trace: np.ndarray | None = None


class Stages:
    """The loaded stages.

    Attributes:
      stage_b: networks of Stage B, the compressor and Stage A.
      stage_c: networks of Stage C; None where there is none.
      offload: weights stay on the host, one stage at a time is on the device.
      mesh: what they are spread over.
      configs: of the runs, by stage.
    """

    stage_b: StageBNetworks
    stage_c: StageCNetworks | None
    offload: bool
    mesh: Mesh
    configs: dict[str, ConfigDict]
    _weights: dict[str, Tree]
    _whole: dict[str, Tree]  # as given, of those that are held in narrower types
    _run: str | None  # a digest of its weights, once it was asked for
    _encoders: dict[str, str]  # names of the encoders of those that were asked for
    _narrows: bool
    _texts: dict[str, TextSide]  # what reads a prompt, by its name in messages

    def _make_programs(self) -> None:
        """Made once: a new jit at every call would trace and compile again."""
        stage_b, out = self.stage_b, batch_sharding(self.mesh)
        advance = lambda name, plan: Program(
            f"{name}'s sampler",
            partial(advance_stage, plan),
            static_argnames=("settings", "shape"),
            out_shardings=out,
        )
        texts = lambda name, networks: Program(
            f"{name}'s text encoder", partial(encode_texts, networks), out_shardings=out
        )
        self._texts = {STAGE_B: stage_b.text}
        if self.stage_c is not None:
            self._texts = {STAGE_C: self.stage_c.text, **self._texts}
            self._advance_c = advance("Stage C", partial(plan_c, self.stage_c, stage_b))
            self._texts_c = texts("Stage C", self.stage_c)
        self._advance_b = advance("Stage B", partial(plan_b, stage_b))
        self._texts_b = texts("Stage B", stage_b)
        decode = lambda weights, latents: stage_b.decode_latents({"vqgan": weights}, latents)
        self._decode = Program("Stage A's decoder", decode)
        self._compress = Program("the compressor", stage_b.compress)
        self._to_raw = jax.jit(partial(raw_latents, stage_b))

    def set_weights(self, name: str, tree: Tree) -> None:
        """Replaces the weights of one stage; nothing is compiled again."""
        self._encoders.pop(name, None)
        self._run = None
        if self._narrows and name in ("stage_b", "stage_c"):
            self._whole[name], tree = tree, self._held(name, tree)
        placed = jax.tree.map(np.asarray, tree) if self.offload else on_mesh(tree, self.mesh)
        self._weights[name] = placed

    def _held(self, name: str, tree: Tree) -> Tree:
        """A stage's weights in the types that they are used in."""
        from paella_jax.pipelines.held_stage import held_stage

        side = self.configs[name].data.image_size
        guide, latents = self._shapes((side, side))
        sampler, stage_b, stage_c = self._sampler(name), self.stage_b, self.stage_c
        if name == "stage_b" or stage_c is None:
            return held_stage(stage_b, stage_b, tree, stage_b_settings(sampler), latents, guide)
        return held_stage(stage_c, stage_b, tree, stage_c_settings(sampler), guide, guide)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Tree]:
        """A stage's weights on the device, and off it afterwards where weights are offloaded."""
        if name == "compressor" and not self.can_encode:
            raise ValueError(NO_COMPRESSOR)
        if not self.offload:
            yield self._weights[name]
            return
        tree = on_mesh(self._weights[name], self.mesh)
        try:
            yield tree
        finally:
            jax.tree.map(lambda x: x.delete(), tree)

    def _draw_c(
        self,
        piece: StageRequest,
        rows: int,
        settings: DDPMSettings,
        later: tuple[StageRequest, DDPMSettings],
        shapes: tuple[Any, Any],
        job: Job,
    ) -> tuple[Any, ...]:
        """A batch of Stage C's latents in raw scale, and with a trace those after every step.

        Args:
          piece: of the request.
          rows: how many of its images are no repeats.
          settings: of Stage C.
          later: the same piece for Stage B, and its settings, for previews.
          shapes: of both stages' latents.
          job: may be looked at, and stopped: the latents are then those predicted last.
        """
        course = settings.course()
        piece_b, settings_b = later
        raw = lambda latents: self._to_raw(latents, piece.start, piece.generate)

        def show(reached: Any) -> np.ndarray:
            seen = piece_b._replace(guide=raw(reached[1][1]))
            return fetch(self._decode_latents(seen, settings_b, shapes[1])[0])[:rows]

        with self._stage("stage_c") as weights:
            request = self._texts_c(weights, piece)
            advance = steps_of(self._advance_c, weights, request, settings, shapes[0])
            reached = self._nothing(request, shapes[0], settings)
            kept = range(1, int(course.edges[-1]) + 1) if job.trace else ()
            reached, history = in_groups(advance, reached, course.edges, show, job.watch, kept)
        latents = raw(reached[1][1] if job.stopped else reached[0][0])
        if not job.trace:
            return (latents,)
        return latents, np.stack([fetch(raw(after)) for after, _ in history], axis=1)

    def _decode_latents(
        self,
        piece: StageRequest,
        settings: DDPMSettings,
        shape: Any,
        rows: int = 0,
        job: Job | None = None,
    ) -> tuple[Any, Any]:
        """Stage B, then Stage A: images and Stage B's latents, all of a piece.

        Args:
          piece: of the request.
          settings: of Stage B.
          shape: of its latents.
          rows: how many of the images are no repeats, for those who look on.
          job: may be looked at, and stopped: the latents are then those predicted last.
        """
        course = settings.course()

        def decode(latents: Any) -> Any:
            with self._stage("vqgan") as weights:
                return jax.block_until_ready(self._decode(weights, latents))

        show = lambda reached: fetch(decode(reached[1][1]))[:rows]
        with self._stage("stage_b") as weights:
            request = self._texts_b(weights, piece)
            advance = steps_of(self._advance_b, weights, request, settings, shape)
            reached = self._nothing(request, shape, settings)
            watch = None if job is None else job.watch
            reached, _ = in_groups(advance, reached, course.edges, show, watch)
        stopped = job is not None and job.stopped
        latents = reached[1][1] if stopped else reached[0][0]
        return decode(latents), latents

    def _nothing(self, piece: StageRequest, shape: Any, settings: DDPMSettings) -> Any:
        state = empty_state(len(piece.images.seeds), shape, settings)
        return place(state, batch_sharding(self.mesh))

    def _shapes(self, size: tuple[int, int]) -> tuple[Shape, Shape]:
        """Of Stage C's and of Stage B's latents, for images of a size in pixels."""
        (height, width), stage_b = size, self.stage_b
        of_c = (stage_b.guide_side(height), stage_b.guide_side(width))
        of_b = (stage_b.latent_side(height), stage_b.latent_side(width))
        channels = stage_b.stage_b.guide_channels, stage_b.vqgan.latent_channels
        return (*of_c, channels[0]), (*of_b, channels[1])

    def _sampler(self, stage: str) -> ConfigDict:
        return self.configs[stage].sampler

    @property
    def can_encode(self) -> bool:
        """Whether there is a compressor: drawing needs none, and some shared folders have none."""
        return self._weights["compressor"] is not None

    def encode(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> Stage C latents, raw scale."""
        images = read_images(images)
        for name, side in zip(("height", "width"), images.shape[1:3], strict=True):
            check_side(name, side, self.stage_b.size_divisor)
        with self._stage("compressor") as weights:
            run = lambda piece, rows: self._compress(weights, piece)
            return in_batches(run, images, len(images), Job(batch_size=batch_size), self.mesh)

    def reconstruct(self, images: np.ndarray, **options: Any) -> WuerstchenGeneration:
        """Images through the compressor and back: what Stage C at its best would draw.

        Args:
          images: [count, H, W, 3], uint8 or in [0, 1].
          **options: of `draw_stage_b`.
        """
        return self.draw_stage_b(self.encode(images), **options)

    def decode(self, latents_c: np.ndarray, **options: Any) -> np.ndarray:
        """The images of `draw_stage_b`."""
        return self.draw_stage_b(latents_c, **options).images

    def draw_stage_b(
        self,
        latents_c: np.ndarray,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] = 0,
        number: int | Sequence[int] = 0,
        batch_size: int = 64,
        **stage_b: Any,
    ) -> WuerstchenGeneration:
        """Stage C latents -> images by Stage B and Stage A.

        Args:
          latents_c: float [count, h, w, C], raw scale, drawn by `generate` or made by `encode`.
          prompt: what Stage B's text encoder sees; one text, or one per image.
          negative_prompt: the same of what its guidance leads away from.
          seed: of Stage B's noise; one, or one per image.
          number: of each image among its prompt's: with the seed of a `generate` call it redraws
            that call's images from its latents.
          batch_size: bounds the images per program.
          **stage_b: num_steps, guidance_scale and stepper of Stage B.

        Raises:
          ValueError: latents of another shape, or settings that make no sense.
        """
        latents_c = np.asarray(latents_c, np.float32)
        channels = self.stage_b.stage_b.guide_channels
        if latents_c.ndim != 4 or latents_c.shape[-1] != channels:
            raise ValueError(
                f"latents have shape {latents_c.shape}; give [count, h, w, {channels}]"
            )
        if not is_finite(latents_c):
            raise ValueError("latents hold NaN or infinity; give those of a call or of encode")
        count = len(latents_c)
        read_by = {STAGE_B: self.stage_b.text}
        prompts = checked_texts(read_by, prompt, allow_empty=True)
        prompts = one_per_prompt(prompts, count, "prompt")
        negatives = checked_texts(read_by, negative_prompt, allow_empty=True)
        negatives = one_per_prompt(negatives, count, "negative_prompt")
        numbers = np.asarray(one_per_prompt(number, count, "number"))
        seeds = checked_seeds(np.asarray(one_per_prompt(seed, count, "seed")))
        given = Numbered(seeds, numbers.astype(np.int32))
        pixels = lambda side: round(
            side * self.stage_b.compressor.downsampling / self.stage_b.ratio
        )
        size = (pixels(latents_c.shape[1]), pixels(latents_c.shape[2]))
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(f"the latents' {name}", side, self.stage_b.size_divisor)
        settings = stage_b_settings(self._sampler("stage_b"), **stage_b)
        texts = [self.stage_b.text.ids(x) for x in (prompts, negatives)]
        request = StageRequest(given, texts[0], texts[1], guide=latents_c)
        job = Job(batch_size=batch_size)
        images, latents_b = self._through_b(request, self._shapes(size)[1], settings, job)
        return WuerstchenGeneration(images, latents_c, latents_b)

    def _through_b(
        self, request: StageRequest, shape: tuple[int, ...], settings: DDPMSettings, job: Job
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stage B, then Stage A: images and Stage B's latents of a whole request."""
        run = lambda piece, rows: self._decode_latents(piece, settings, shape, rows, job)
        return in_batches(run, request, len(request.images.seeds), job, self.mesh)
