"""Würstchen as a call: prompt -> Stage C -> Stage B -> Stage A -> image.

Latents have names after the stage that draws them: `latents_c` are the compressor's (raw scale, 42
times smaller than the image), `latents_b` are Stage A's (4 times smaller). Source:
docs/models/wuerstchen.md 5.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.images.read import ImageLike, read_images
from paella_jax.pipelines.base import (
    Job,
    Pipeline,
    all_devices,
    in_batches,
    numbered_keys,
    on_mesh,
    one_per_prompt,
)
from paella_jax.pipelines.geometry import check_side
from paella_jax.pipelines.wuerstchen_programs import (
    Scale,
    draw_b,
    draw_c,
    stage_b_options,
    stage_b_settings,
    stage_c_settings,
)
from paella_jax.pipelines.wuerstchen_texts import checked_texts, cut_text, negative_texts
from paella_jax.sampling.diffusion import DDPMSettings
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree

NO_COMPRESSOR = (
    "this run has no compressor, as diffusers' folders have none: it draws from text, but cannot "
    "encode or reconstruct images; convert it again with --compressor model_v2_stage_b.pt"
)
STAGE_B, STAGE_C = "Stage B's text encoder", "Stage C's text encoder"  # in messages


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


class WuerstchenPipeline(Pipeline):
    """Three stages as one call. Without a Stage C it reconstructs images but draws none."""

    def __init__(
        self,
        stage_b: StageBNetworks,
        stage_c: StageCNetworks | None,
        weights: dict[str, Tree],
        configs: dict[str, ConfigDict],
        offload: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        """Puts loaded stages together (load.py).

        Args:
          stage_b: networks of Stage B, the compressor and Stage A.
          stage_c: networks of Stage C.
          weights: "stage_c", "stage_b" as (params, frozen); "vqgan" and "compressor".
          configs: of "stage_b", and of "stage_c" if there is one.
          offload: keep weights on the host and put one stage at a time on the device.
          mesh: the one that the weights of a run in training lie on; default all devices.
        """
        self.stage_b, self.stage_c = stage_b, stage_c
        self.configs = configs
        self.config = configs.get("stage_c", configs["stage_b"])
        self.offload = offload
        self.mesh = mesh or all_devices()
        self._texts = {STAGE_B: stage_b.text}
        self._weights: dict[str, Tree] = {}
        for name, tree in weights.items():
            self.set_weights(name, tree)
        if stage_c is not None:
            self._texts = {STAGE_C: stage_c.text, **self._texts}
            drawing, static = partial(draw_c, stage_c, stage_b), ("settings", "shape", "trace")
            self._draw_c = Program("Stage C's sampler", drawing, static_argnames=static)
        decoding = partial(draw_b, stage_b)
        self._draw_b = Program("Stage B's sampler", decoding, static_argnames=("settings", "shape"))
        decode = lambda weights, latents: stage_b.decode_latents({"vqgan": weights}, latents)
        self._decode = jax.jit(decode)
        self._compress = jax.jit(stage_b.compress)

    def set_weights(self, name: str, tree: Tree) -> None:
        """Replaces the weights of one stage; nothing is compiled again."""
        placed = jax.tree.map(np.asarray, tree) if self.offload else self._on_device(tree)
        self._weights[name] = placed

    def _on_device(self, tree: Tree) -> Tree:
        return on_mesh(tree, self.mesh)

    @contextmanager
    def _stage(self, name: str) -> Iterator[Tree]:
        """A stage's weights on the device, and off it afterwards where weights are offloaded."""
        if self._weights[name] is None:
            raise ValueError(NO_COMPRESSOR)
        if not self.offload:
            yield self._weights[name]
            return
        tree = self._on_device(self._weights[name])
        try:
            yield tree
        finally:
            jax.tree.map(lambda x: x.delete(), tree)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num_steps: int | None = None,
        guidance_scale: Scale = None,
        stepper: str | None = None,
        image: ImageLike | None = None,
        strength: float = 0.6,
        **options: Any,
    ) -> WuerstchenGeneration:
        """As calling the pipeline, with the latents.

        Args:
          prompt: one text or several.
          num_steps: of Stage C, spread over its ranges as the run's own.
          guidance_scale: of Stage C; 1 switches it off, a pair ramps.
          stepper: of Stage C: ddpm, ddim or dpm++ (for few steps).
          image: to start Stage C from (image to image): a file, PIL image, or [height, width, 3].
          strength: with `image`: how far it is noised, in (0, 1]; 1 forgets it.
          **options: those of `Job` (base.py), and num_steps, guidance_scale and stepper of Stage B,
            as `stage_b_num_steps` ...

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if self.stage_c is None:
            raise ValueError(
                "this folder holds a Stage B run, which draws no images from text; give the run "
                "folder of configs/stage_c.py"
            )
        job, of_stage_b = Job.take(options)
        _refuse_temperature(of_stage_b.pop("temperature", None))
        texts = checked_texts(self._texts, prompt)
        negatives, keys = negative_texts(self._texts, job, len(texts)), job.keys(len(texts))
        texts, negatives = job.repeat(texts), job.repeat(negatives)
        if image is not None:
            image = self.read(image)
        size = self._size(image, job.height, job.width)
        settings_b = stage_b_settings(self._sampler("stage_b"), **stage_b_options(of_stage_b))
        if image is not None and not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must be in (0, 1], got {strength}")
        level = 1.0 if image is None else strength
        settings = stage_c_settings(
            self._sampler("stage_c"), num_steps, guidance_scale, stepper, level
        )
        start = None
        if image is not None:
            start = np.repeat(self.encode(image[None]), len(texts), axis=0)
        request = (keys, *(self.stage_c.text.ids(x) for x in (texts, negatives)), start)
        shape = (*(self.stage_b.guide_side(side) for side in size), self.stage_c.stage_c.channels)
        with self._stage("stage_c") as weights:
            run = lambda piece: self._draw_c(
                weights, piece, settings=settings, shape=shape, trace=job.trace
            )
            latents_c, *history = in_batches(run, request, len(keys), job.batch_size, self.mesh)
        request_b = (
            keys,
            latents_c,
            self.stage_b.text.ids(texts),
            self.stage_b.text.ids(negatives),
        )
        images, latents_b = self._decode_latents(request_b, size, settings_b, job.batch_size)
        moved = np.moveaxis(history[0], 1, 0) if job.trace else None
        return WuerstchenGeneration(images, latents_c, latents_b, moved)

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Configs and weights of its stages."""
        named = {"": "stage_c", "stage_b": "stage_b"} if self.stage_c else {"": "stage_b"}
        return {name: (self.configs[s], self._weights[s]) for name, s in named.items()}

    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError for a size or a setting of Stage C that it cannot draw with."""
        _refuse_temperature(settings.get("temperature"))
        self._size(None, settings.get("height"), settings.get("width"))
        steps, scale = settings.get("num_steps"), settings.get("guidance_scale")
        stage_c_settings(self._sampler("stage_c"), steps, scale, None, 1.0)

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Texts of any lengths can be drawn together. Raises PromptError where one is too long."""
        checked_texts(self._texts, texts, allow_empty=True)
        return ()

    def cut_text(self, text: str) -> str:
        """The part of a text that all stages' encoders read."""
        return cut_text(self._texts, text)

    def _states(self, result: WuerstchenGeneration) -> Iterable[np.ndarray]:
        return () if result.trace is None else result.trace

    def _sampler(self, stage: str) -> ConfigDict:
        return self.configs[stage].sampler

    def encode(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> Stage C latents, raw scale."""
        images = read_images(images)
        for name, side in zip(("height", "width"), images.shape[1:3], strict=True):
            check_side(name, side, self.stage_b.size_divisor)
        with self._stage("compressor") as weights:
            run = lambda piece: (self._compress(weights, piece),)
            return in_batches(run, images, len(images), batch_size, self.mesh)[0]

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
        seed: int | Sequence[int] = 0,
        number: int | Sequence[int] = 0,
        batch_size: int = 64,
        **stage_b: Any,
    ) -> WuerstchenGeneration:
        """Stage C latents -> images by Stage B and Stage A.

        Args:
          latents_c: float [count, h, w, C], raw scale, drawn by `generate` or made by `encode`.
          prompt: what Stage B's text encoder sees; one text, or one per image.
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
        count = len(latents_c)
        prompts = checked_texts({STAGE_B: self.stage_b.text}, prompt, allow_empty=True)
        prompts = one_per_prompt(prompts, count, "prompt")
        numbers = np.asarray(one_per_prompt(number, count, "number"))
        keys = numbered_keys(np.asarray(one_per_prompt(seed, count, "seed")), numbers)
        pixels = lambda side: round(
            side * self.stage_b.compressor.downsampling / self.stage_b.ratio
        )
        size = (pixels(latents_c.shape[1]), pixels(latents_c.shape[2]))
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(f"the latents' {name}", side, self.stage_b.size_divisor)
        settings = stage_b_settings(self._sampler("stage_b"), **stage_b)
        request = (keys, latents_c, *(self.stage_b.text.ids(x) for x in (prompts, [""] * count)))
        images, latents_b = self._decode_latents(request, size, settings, batch_size)
        return WuerstchenGeneration(images, latents_c, latents_b)

    def _decode_latents(
        self,
        request: tuple[Any, ...],
        size: tuple[int, ...],
        settings: DDPMSettings,
        batch_size: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stage B, then Stage A: images and Stage B's latents.

        Args:
          request: keys, Stage C's latents, and Stage B's ids of the prompts and of the negatives.
          size: (height, width) of the images in pixels.
          settings: of Stage B's sampler.
          batch_size: bounds the images per program.
        """
        count = len(request[0])
        channels = self.stage_b.vqgan.latent_channels
        shape = (*(self.stage_b.latent_side(side) for side in size), channels)
        with self._stage("stage_b") as weights:
            run = lambda piece: (self._draw_b(weights, piece, settings=settings, shape=shape),)
            (latents_b,) = in_batches(run, request, count, batch_size, self.mesh)
        with self._stage("vqgan") as weights:
            run = lambda piece: (self._decode(weights, piece),)
            (images,) = in_batches(run, latents_b, count, batch_size, self.mesh)
        return images, latents_b

    def _size(
        self, image: np.ndarray | None, height: int | None, width: int | None
    ) -> tuple[int, int]:
        """Height and width in pixels: the image's, or those asked for. Raises ValueError."""
        default = self.config.data.image_size
        own = (default, default) if image is None else np.shape(image)[:2]
        size = (height or own[0], width or own[1])
        if image is not None and size != own:
            raise ValueError(f"the image is {own}, the size asked for {(height, width)}")
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(name, side, self.stage_b.size_divisor)
        return size


def _refuse_temperature(given: Any) -> None:
    if given is not None:
        raise ValueError("diffusion stages have no temperature; use guidance_scale and stepper")
