"""Prompt -> Stage C -> Stage B -> Stage A -> image: what `paella_jax.load` returns for Würstchen.

Latents have names after the stage that draws them: `latents_c` are the compressor's (raw scale, 42
times smaller than the image), `latents_b` are Stage A's (4 times smaller). Facts:
docs/models/wuerstchen.md 5.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.encoders.byte_tokenizer import check_prompts
from paella_jax.families.stage_b import COMPRESSOR, StageBNetworks, load_stage_b
from paella_jax.families.stage_c import StageCNetworks, make_stage_c
from paella_jax.images.read import ImageLike, read_image, read_images
from paella_jax.images.write import to_uint8
from paella_jax.pipelines.base import (
    check_side,
    image_keys,
    in_batches,
    numbered_keys,
    one_per_prompt,
)
from paella_jax.pipelines.wuerstchen_programs import (
    Scale,
    draw_b,
    draw_c,
    stage_b_options,
    stage_b_settings,
    stage_c_settings,
)
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import read_config
from paella_jax.sampling.diffusion import DDPMSettings
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.typing import Array, Tree

LONGEST_TEXT = 10_000  # bytes; encoders cut texts to their own length


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


class WuerstchenPipeline:
    """Three stages as one call. Without a Stage C it reconstructs images but draws none."""

    def __init__(
        self,
        stage_b: StageBNetworks,
        stage_c: StageCNetworks | None,
        weights: dict[str, Tree],
        configs: dict[str, ConfigDict],
        offload: bool = False,
    ) -> None:
        """See `load_wuerstchen`.

        Args:
          stage_b: networks of Stage B, the compressor and Stage A.
          stage_c: networks of Stage C.
          weights: "stage_c", "stage_b" as (params, frozen); "vqgan" and "compressor".
          configs: of "stage_b", and of "stage_c" if there is one.
          offload: keep weights on the host and put one stage at a time on the device.
        """
        self.stage_b, self.stage_c = stage_b, stage_c
        self.configs = configs
        self.config = configs.get("stage_c", configs["stage_b"])
        self.offload = offload
        self.mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
        self._weights: dict[str, Tree] = {}
        for name, tree in weights.items():
            self.set_weights(name, tree)
        if stage_c is not None:
            self._draw_c = jax.jit(
                partial(draw_c, stage_c, stage_b), static_argnames=("settings", "shape", "trace")
            )
        self._draw_b = jax.jit(partial(draw_b, stage_b), static_argnames=("settings", "shape"))
        decode = lambda weights, latents: stage_b.decode_latents({"vqgan": weights}, latents)
        self._decode = jax.jit(decode)
        self._compress = jax.jit(stage_b.compress)

    def set_weights(self, name: str, tree: Tree) -> None:
        """Replaces the weights of one stage; nothing is compiled again."""
        placed = jax.tree.map(np.asarray, tree) if self.offload else self._on_device(tree)
        self._weights[name] = placed

    def _on_device(self, tree: Tree) -> Tree:
        return jax.device_put(tree, replicated(self.mesh))

    @contextmanager
    def _stage(self, name: str) -> Iterator[Tree]:
        """A stage's weights on the device, and off it afterwards where weights are offloaded."""
        if not self.offload:
            yield self._weights[name]
            return
        tree = self._on_device(self._weights[name])
        try:
            yield tree
        finally:
            jax.tree.map(lambda x: x.delete(), tree)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        output_type: str = "pil",
        callback: Callable[[int, np.ndarray], None] | None = None,
        **options: Any,
    ) -> list[Image.Image] | np.ndarray:
        """Generates images.

        Args:
          prompt: one text or several.
          output_type: "pil" or "array" (float32 [count, height, width, 3] in [0, 1]).
          callback: called as (step, Stage C's latents so far) for every step, afterwards.
          **options: of `generate`.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if output_type not in ("pil", "array"):
            raise ValueError(f"output_type must be 'pil' or 'array', got {output_type!r}")
        result = self.generate(prompt, trace=callback is not None, **options)
        if callback is not None and result.trace is not None:
            for step, latents in enumerate(result.trace):
                callback(step, latents)
        if output_type == "array":
            return result.images
        return [Image.fromarray(image) for image in to_uint8(result.images)]

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: Scale = None,
        temperature: float | None = None,
        stepper: str | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        batch_size: int = 64,
        image: ImageLike | None = None,
        strength: float = 0.6,
        trace: bool = False,
        **stage_b: Any,
    ) -> WuerstchenGeneration:
        """As calling the pipeline, with the latents.

        Args:
          prompt: one text or several.
          negative_prompt: what to steer away from; one text, or one per prompt.
          height: pixels; default the training size. So is width.
          width: pixels.
          num_steps: of Stage C, spread over its ranges as the run's own.
          guidance_scale: of Stage C; 1 switches it off, a pair ramps.
          temperature: diffusion has none; only there to be refused by name.
          stepper: of Stage C: ddpm, ddim or dpm++ (for few steps).
          seed: one, or one per prompt. An image depends on its prompt, its seed and its number
            among the prompt's images, not on the rest of the call.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          batch_size: bounds the images per program.
          image: to start Stage C from (image to image): a file, PIL image, or [height, width, 3].
          strength: with `image`: how far it is noised, in (0, 1]; 1 forgets it.
          trace: also return Stage C's latents after every step.
          **stage_b: num_steps, guidance_scale and stepper of Stage B, as `stage_b_num_steps` ...

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if self.stage_c is None:
            raise ValueError(
                "this folder holds a Stage B run, which draws no images from text; give the run "
                "folder of configs/stage_c.py"
            )
        if temperature is not None:
            raise ValueError("diffusion stages have no temperature; use guidance_scale and stepper")
        prompts = check_prompts(prompt, LONGEST_TEXT)
        negatives = check_prompts(negative_prompt, LONGEST_TEXT, allow_empty=True)
        negatives = one_per_prompt(negatives, len(prompts), "negative_prompt")
        seeds = one_per_prompt(seed, len(prompts), "seed")
        repeat = lambda texts: [text for text in texts for _ in range(num_images_per_prompt)]
        keys = image_keys(seeds, num_images_per_prompt)
        prompts, negatives = repeat(prompts), repeat(negatives)
        if image is not None:
            image = read_image(image)
        size = self._size(image, height, width)
        settings_b = stage_b_settings(self.configs["stage_b"].sampler, **stage_b_options(stage_b))
        if image is not None and not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must be in (0, 1], got {strength}")
        settings = stage_c_settings(
            self.configs["stage_c"].sampler,
            num_steps,
            guidance_scale,
            stepper,
            1.0 if image is None else strength,
        )
        start = None
        if image is not None:
            start = np.repeat(self.encode(image[None]), len(prompts), axis=0)
        request = (
            keys,
            self.stage_c.text.ids(prompts),
            self.stage_c.text.ids(negatives),
            start,
        )
        shape = (*(self.stage_b.guide_side(side) for side in size), self.stage_c.stage_c.channels)
        with self._stage("stage_c") as weights:
            run = lambda piece: self._draw_c(
                weights, piece, settings=settings, shape=shape, trace=trace
            )
            latents_c, *history = in_batches(run, request, len(keys), batch_size, self.mesh)
        images, latents_b = self._decode_latents(
            latents_c, size, prompts, negatives, keys, settings_b, batch_size
        )
        moved = np.moveaxis(history[0], 1, 0) if trace else None
        return WuerstchenGeneration(images, latents_c, latents_b, moved)

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
        prompts = check_prompts(prompt, LONGEST_TEXT, allow_empty=True)
        prompts = one_per_prompt(prompts, count, "prompt")
        numbers = np.asarray(one_per_prompt(number, count, "number"))
        keys = numbered_keys(np.asarray(one_per_prompt(seed, count, "seed")), numbers)
        pixels = lambda side: round(side * self.stage_b.compressor.downsampling / self._ratio)
        size = (pixels(latents_c.shape[1]), pixels(latents_c.shape[2]))
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(f"the latents' {name}", side, self.stage_b.size_divisor)
        settings = stage_b_settings(self.configs["stage_b"].sampler, **stage_b)
        empty = [""] * count
        images, latents_b = self._decode_latents(
            latents_c, size, prompts, empty, keys, settings, batch_size
        )
        return WuerstchenGeneration(images, latents_c, latents_b)

    @property
    def _ratio(self) -> float:
        return self.stage_b.ratio

    def _decode_latents(
        self,
        latents_c: np.ndarray,
        size: tuple[int, int],
        prompts: list[str],
        negatives: list[str],
        keys: Array,
        settings: DDPMSettings,
        batch_size: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stage B, then Stage A: images and Stage B's latents."""
        text = self.stage_b.text
        request = (keys, latents_c, text.ids(prompts), text.ids(negatives))
        channels = self.stage_b.vqgan.latent_channels
        shape = (*(self.stage_b.latent_side(side) for side in size), channels)
        count = len(latents_c)
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
        default = self.config.data.image_size
        if image is not None:
            shape = np.shape(image)[:2]
            if (height or shape[0], width or shape[1]) != shape:
                raise ValueError(f"the image is {shape}, the size asked for {(height, width)}")
            size = shape
        else:
            size = (height or default, width or default)
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(name, side, self.stage_b.size_divisor)
        return size


def load_wuerstchen(directory: str | Path, offload: bool = False) -> WuerstchenPipeline:
    """Loads a Stage C run (all three stages), or a Stage B run (reconstruction only).

    Args:
      directory: run folder of configs/stage_c.py or configs/stage_b.py.
      offload: keep weights on the host and put one stage at a time on the device.

    Raises:
      CheckpointError: no run there, of another kind, or damaged.
      ConfigError: stages that do not belong together.
    """
    workdir = Path(directory)
    config = read_config(workdir)
    if config.method not in ("stage_b", "stage_c"):
        raise CheckpointError(f"{workdir} holds a run of method {config.method!r}, not Würstchen's")
    if config.method == "stage_c":
        return load_stage_c_pipeline(config, workdir, None, offload)
    config_b, stage_b, params, frozen = load_stage_b(workdir)
    weights = _weights_behind(params, frozen)
    return WuerstchenPipeline(stage_b, None, weights, {"stage_b": config_b}, offload)


def load_stage_c_pipeline(
    config: ConfigDict,
    workdir: Path,
    weights: tuple[Tree, Tree] | None = None,
    offload: bool = False,
) -> WuerstchenPipeline:
    """All three stages of a Stage C run's folder.

    Args:
      config: of the run.
      workdir: its folder.
      weights: Stage C's parameters and frozen text encoder; None reads the newest checkpoint.
      offload: see `load_wuerstchen`.
    """
    config_b, stage_b, params, frozen = load_stage_b(workdir)
    stage_c, frozen_c = make_stage_c(config, workdir, stage_b)
    if weights is None:
        weights = (restore_trained(workdir, config), frozen_c)
    return WuerstchenPipeline(
        stage_b,
        stage_c,
        _weights_behind(params, frozen) | {"stage_c": weights},
        {"stage_b": config_b, "stage_c": config},
        offload,
    )


def _weights_behind(params: Tree, frozen: Tree) -> dict[str, Tree]:
    """Of everything after Stage C."""
    texts = {name: tree for name, tree in frozen.items() if name not in ("vqgan", COMPRESSOR)}
    own = {name: tree for name, tree in params.items() if name != COMPRESSOR}
    return {
        "stage_b": (own, texts),
        "vqgan": frozen["vqgan"],
        "compressor": frozen[COMPRESSOR],
    }
