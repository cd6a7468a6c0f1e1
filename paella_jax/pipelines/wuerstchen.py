"""Würstchen as a call: prompt -> Stage C -> Stage B -> Stage A -> image.

Latents have names after the stage that draws them: `latents_c` are the compressor's (raw scale, 42
times smaller than the image), `latents_b` are Stage A's (4 times smaller). Source:
docs/models/wuerstchen.md 5.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.families.stage_b import StageBNetworks
from paella_jax.families.stage_c import StageCNetworks
from paella_jax.families.text_side import TextSide
from paella_jax.images.read import ImageLike
from paella_jax.pipelines.base import Job, Pipeline
from paella_jax.pipelines.batches import (
    Numbered,
    all_devices,
    in_batches,
    num_pieces,
)
from paella_jax.pipelines.geometry import check_side, touched
from paella_jax.pipelines.given_image import GivenImage
from paella_jax.pipelines.narrow import holds_narrow
from paella_jax.pipelines.prompt_embeds import PromptEmbeds, check_embeds
from paella_jax.pipelines.run_digests import encoders_digest
from paella_jax.pipelines.wuerstchen_programs import (
    Scale,
    StageRequest,
    stage_b_options,
    stage_b_settings,
    stage_c_settings,
)
from paella_jax.pipelines.wuerstchen_stages import (
    PREVIEW_STEPS,
    Stages,
    WuerstchenGeneration,
)
from paella_jax.pipelines.wuerstchen_texts import checked_texts, cut_text, negative_texts
from paella_jax.typing import Tree


class WuerstchenPipeline(Stages, Pipeline):
    """Three stages as one call. Without a Stage C it reconstructs images but draws none."""

    beside = "latents"

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
        self._narrows = mesh is None and holds_narrow(self.config.precision)
        self._weights, self._whole = {}, {}
        self._encoders: dict[str, str] = {}
        for name, tree in weights.items():
            self.set_weights(name, tree)
        self._make_programs()

    def generate(
        self,
        prompt: str | Sequence[str] | PromptEmbeds,
        *,
        num_steps: int | None = None,
        guidance_scale: Scale = None,
        stepper: str | None = None,
        image: ImageLike | None = None,
        strength: float = 0.6,
        generate: np.ndarray | None = None,
        **options: Any,
    ) -> WuerstchenGeneration:
        """As calling the pipeline, with the latents.

        Args:
          prompt: one text or several, or embeddings.
          num_steps: of Stage C, spread over its ranges as the run's own.
          guidance_scale: of Stage C; 1 switches it off, a pair ramps.
          stepper: of Stage C: ddpm, ddim or dpm++ (for few steps).
          image: to start Stage C from (image to image): a file, PIL image, or [height, width, 3].
          strength: with `image`: how far it is noised, in (0, 1]; 1 forgets it.
          generate: with `image`: float32 [h, w] of Stage C's latents, 1 where they are drawn anew
            and 0 where they stay. Stage B draws all of the image.
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
        _refuse_sampler(of_stage_b.pop("sampler", None))
        count, texts = self._texts_of(prompt, job)
        drawn = job.images(count)
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
        requests = self._requests(drawn, job.num_images_per_prompt, texts, image, generate)
        shapes, total = self._shapes(size), count * job.num_images_per_prompt
        pieces = num_pieces(total, job.batch_size, self.mesh)
        steps = int(settings.course().edges[-1]) + int(settings_b.course().edges[-1])
        job.expect(pieces * steps)
        quick = replace(settings_b, num_steps=min(PREVIEW_STEPS, settings_b.num_steps))
        draw = lambda piece, rows: self._draw_c(
            piece[0], rows, settings, (piece[1], quick), shapes, job
        )
        latents_c, *history = in_batches(draw, requests, total, job, self.mesh)
        # Of a call that was stopped: what there is, as it was shown last.
        request_b = jax.tree.map(lambda x: x[: len(latents_c)], requests[1])
        last, settings_b = (replace(job, watch=None), quick) if job.stopped else (job, settings_b)
        images, latents_b = self._through_b(
            request_b._replace(guide=latents_c), shapes[1], settings_b, last
        )
        moved = np.moveaxis(history[0], 1, 0) if job.trace else None
        return WuerstchenGeneration(images, latents_c[: len(images)], latents_b, moved)

    def _requests(
        self,
        drawn: Numbered,
        copies: int,
        texts: dict[str, tuple[Any, Any]],
        image: np.ndarray | None,
        generate: np.ndarray | None,
    ) -> tuple[StageRequest, StageRequest]:
        """What both stages are asked for, of all images."""
        own = {
            name: jax.tree.map(lambda x: np.repeat(x, copies, axis=0), pair)
            for name, pair in texts.items()
        }
        all_of = lambda x: None if x is None else np.repeat(x[None], len(drawn.seeds), axis=0)
        start = None if image is None else all_of(self.encode(image[None])[0])
        where = None if generate is None else all_of(generate[..., None])
        return (
            StageRequest(drawn, *own["stage_c"])._replace(start=start, generate=where),
            StageRequest(drawn, *own["stage_b"]),
        )

    def _texts_of(self, prompt: Any, job: Job) -> tuple[int, dict[str, tuple[Any, Any]]]:
        """How many prompts there are; ids, or what the encoders made of them, of each stage."""
        if isinstance(prompt, PromptEmbeds):
            for name in self._text_sides():
                check_embeds(prompt, self._made_for(name), name)
            return len(prompt), dict(prompt.parts)
        texts = checked_texts(self._texts, prompt)
        negatives = negative_texts(self._texts, job, len(texts))
        sides = self._text_sides()
        return len(texts), {n: (x.ids(texts), x.ids(negatives)) for n, x in sides.items()}

    def _text_sides(self) -> dict[str, TextSide]:
        assert self.stage_c is not None
        return {"stage_c": self.stage_c.text, "stage_b": self.stage_b.text}

    def _made_for(self, stage: str) -> str:
        """A name of a stage's encoder."""
        if stage not in self._encoders:
            weights = (self._weights | self._whole)[stage]
            self._encoders[stage] = encoders_digest(self.configs[stage], weights, ("text",))
        return self._encoders[stage]

    def embed(
        self, prompts: str | Sequence[str], negative_prompt: str | Sequence[str] | None = ""
    ) -> PromptEmbeds:
        """What the text encoders of both stages make of prompts, for `prompt_embeds`.

        Raises:
          PromptError, ValueError: an unusable text, or a run without Stage C.

        Example:
          >>> pipe(prompt_embeds=pipe.embed(["a red circle", "a blue square"]))
        """
        job = Job(negative_prompt)
        count, texts = self._texts_of(prompts, job)
        drawn = job.images(count)
        programs = {"stage_c": self._texts_c, "stage_b": self._texts_b}
        parts = {}
        for name, program in programs.items():
            with self._stage(name) as weights:
                run = lambda piece, rows, p=program, w=weights: p(w, piece)[1:3]
                request = StageRequest(drawn, *texts[name])
                parts[name] = in_batches(run, request, count, job, self.mesh)
        negatives = negative_texts(self._texts, job, count)
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        made_for = {name: self._made_for(name) for name in parts}
        return PromptEmbeds(tuple(listed), tuple(negatives), parts, made_for)

    def _use(self, own: Mapping[str, Any]) -> str:
        back = "reconstructs, and draws nothing from text: pipe.reconstruct(images), pipe.encode, "
        return super()._use(own) if self.stage_c else f"{back}pipe.decode, pipe.defaults"

    @property
    def defaults(self) -> dict[str, Any]:
        """What a call uses where it says nothing else: size and the settings of both stages."""
        side, own = self.config.data.image_size, {}
        for stage in ("stage_c", "stage_b"):
            if stage in self.configs:
                sampler, prefix = self._sampler(stage), "" if stage == "stage_c" else "stage_b_"
                steps = sampler.num_steps if stage == "stage_b" else sum(sampler.segments)
                own[f"{prefix}num_steps"] = steps
                own |= {f"{prefix}{n}": sampler[n] for n in ("guidance_scale", "stepper")}
        return {"height": side, "width": side} | own

    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size of a call's images in pixels. Raises ValueError for one it does not draw."""
        return self._size(None, height, width)

    def check_prompt(self, prompt: Any) -> None:
        """Raises PromptError for what `generate` would refuse as a prompt."""
        if not isinstance(prompt, PromptEmbeds):
            checked_texts(self._texts, prompt)

    def from_image(
        self, given: GivenImage, strength: float, prompts: int, sampler: str | None
    ) -> dict[str, Any]:
        """Arguments of `generate` that start from an image, or keep what a mask does not mark.

        A latent of Stage C is drawn where the mask touches any pixel of it.
        """
        own: dict[str, Any] = {"image": given.pixels, "strength": strength}
        if given.marked is not None:
            grid = self._shapes((given.marked.shape[0], given.marked.shape[1]))[0][:2]
            own["generate"] = touched(given.marked, grid).astype(np.float32)
        return own

    def arrays(self, result: WuerstchenGeneration) -> np.ndarray:
        """Stage C's latents of a result."""
        return result.latents_c

    def steps_of(
        self, generation: WuerstchenGeneration, prompt: Any, options: Mapping[str, Any]
    ) -> np.ndarray:
        """Images of Stage C's latents after every step of a call, by Stage B as in the call."""
        assert generation.trace is not None
        job, left = Job.take(options)
        job = replace(job, watch=None)
        count, texts = self._texts_of(prompt, job)
        images, copies = job.images(count), job.num_images_per_prompt
        request = self._requests(images, copies, texts, None, None)[1]
        own = {name: x for name, x in left.items() if name.startswith("stage_b_")}
        settings = stage_b_settings(self._sampler("stage_b"), **stage_b_options(own))
        shape = self._shapes(self._size(None, job.height, job.width))[1]
        draw = lambda latents: self._through_b(
            request._replace(guide=latents), shape, settings, job
        )[0]
        return np.stack([draw(latents) for latents in generation.trace])

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Configs and weights of its stages, as they were given."""
        named = {"": "stage_c", "stage_b": "stage_b"} if self.stage_c else {"": "stage_b"}
        whole = self._weights | self._whole
        return {name: (self.configs[stage], whole[stage]) for name, stage in named.items()}

    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError for a size or a setting of Stage C that it cannot draw with."""
        _refuse_temperature(settings.get("temperature"))
        self._size(None, settings.get("height"), settings.get("width"))
        own: dict[str, Any] = {
            name: settings.get(name) for name in ("num_steps", "guidance_scale", "stepper")
        }
        stage_c_settings(self._sampler("stage_c"), **own)

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Texts of any lengths can be drawn together. Raises PromptError where one is too long."""
        checked_texts(self._texts, texts, allow_empty=True)
        return ()

    def cut_text(self, text: str) -> str:
        """The part of a text that all stages' encoders read."""
        return cut_text(self._texts, text)

    def _size(
        self, image: np.ndarray | None, height: int | None, width: int | None
    ) -> tuple[int, int]:
        """Height and width in pixels: the image's, or those asked for. Raises ValueError."""
        default = self.config.data.image_size
        own = (default, default) if image is None else np.shape(image)[:2]
        size = (own[0] if height is None else height, own[1] if width is None else width)
        if image is not None and size != own:
            raise ValueError(f"the image is {own}, the size asked for {(height, width)}")
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(name, side, self.stage_b.size_divisor)
        return size


def _refuse_sampler(given: Any) -> None:
    if given is not None:
        raise ValueError("diffusion stages have no sampler; use stepper: ddpm, ddim or dpm++")


def _refuse_temperature(given: Any) -> None:
    if given is not None:
        raise ValueError("diffusion stages have no temperature; use guidance_scale and stepper")
