"""MUSE's two scales: a base run draws a small image, a super-resolution run enlarges it.

Both are `TokenPipeline`s; what passes from one to the other are the small image's tokens
(docs/models/muse.md 1.1, 1.6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.byte_tokenizer import check_prompts
from paella_jax.pipelines.base import Generation, Job, Pipeline
from paella_jax.pipelines.batches import child_seeds, num_pieces, numbered
from paella_jax.pipelines.geometry import OneSize, Scale, keep_unmasked, tokens_of_image
from paella_jax.pipelines.given_image import GivenImage
from paella_jax.pipelines.pairs import check_pair, first_of, unfinished
from paella_jax.pipelines.presets import start_options
from paella_jax.pipelines.prompt_embeds import PromptEmbeds, check_embeds
from paella_jax.pipelines.prompts import Condition, as_conditions, text_limit
from paella_jax.pipelines.records import NOT_OF_THE_SAMPLER
from paella_jax.pipelines.run_digests import run_digest
from paella_jax.pipelines.tokens import Prompt, TokenPipeline
from paella_jax.sampling.token_loop import Known
from paella_jax.typing import Tree

Range = float | tuple[float, float]
PARTS = ("base", "super_resolution")  # of embedded prompts
# The second scale's settings, and what a call names them by behind "super_resolution_".
SECOND = {"num_steps": "steps", "guidance_scale": "guidance", "temperature": "temperature"}
SECOND_SCALE = 2**31 - 2  # number of an image key's child; the samplers use no number near it


class TwoScalePipeline(Pipeline):
    """Text-to-image with two trained runs.

    Attributes:
      base: draws the small images.
      super_resolution: enlarges them.
      config: of the super-resolution, whose images are the result.
      sizes: the images it draws.
    """

    def __init__(self, base: TokenPipeline, super_resolution: TokenPipeline):
        """Joins two loaded runs.

        Raises:
          ValueError: a run of the wrong kind, or two that do not belong together.
        """
        check_pair(base, super_resolution)
        self.base = base
        self.super_resolution = super_resolution
        self.config = super_resolution.config
        self.sizes = OneSize(super_resolution.sizes.only_side)
        self._named: dict[tuple[str, str], str] = {}

    @property
    def side(self) -> int:
        """Height and width of the images in pixels."""
        return self.sizes.side

    @property
    def scales(self) -> list[Scale]:
        """Its two token maps, the small image's first, for image tasks (editing.py)."""
        large, networks = self.super_resolution, self.super_resolution.networks
        low, grid = networks.low_grid, self.side // large.sizes.token
        return [
            Scale("known", "small picture", self.encode_low, self.side // low, low),
            Scale("super_resolution_known", "picture", self.encode, large.sizes.token, grid),
        ]

    def generate(
        self,
        prompt: Prompt,
        *,
        weights: np.ndarray | Sequence[Any] | None = None,
        super_resolution_steps: int | None = None,
        super_resolution_guidance: Range | None = None,
        super_resolution_temperature: Range | None = None,
        super_resolution_known: Known | None = None,
        **options: Any,
    ) -> Generation:
        """As calling the pipeline, with the tokens of both scales.

        Args:
          prompt: as in `TokenPipeline`. Super-resolution reads the texts alone, so none may be
            empty; what else a `Condition` says is in the small image.
          weights: of mixed conditions, as in `TokenPipeline`; regions are those of the base's
            token map, and are enlarged.
          super_resolution_steps: of the second scale; None keeps its run's.
          super_resolution_guidance: of the second scale, one number or a (first, last) pair; None
            keeps its run's.
          super_resolution_temperature: of the second scale, one number or a (first, last) pair;
            None keeps its run's.
          super_resolution_known: tokens to keep and where to draw, [prompts, h, w] each.
          **options: those of `Job` (base.py), with `side` as the only height and width; and of the
            first scale: num_steps, guidance_scale, temperature and whatever else
            `TokenPipeline.generate` takes.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        job, base = Job.take(options)
        self._check_size(job.height, job.width)
        second: dict[str, Any] = {
            "num_steps": super_resolution_steps,
            "guidance_scale": super_resolution_guidance,
            "temperature": super_resolution_temperature,
        }
        self.super_resolution.settings(**second)
        limit = text_limit(self.super_resolution.networks)
        self.check_prompt(prompt)
        count, copies = _count(prompt, limit), job.num_images_per_prompt
        negatives, seeds = job.negatives(count, limit), job.seeds(count)
        shared: Any = {"batch_size": job.batch_size, "trace": job.trace, "watch": job.watch}
        self._expect(job, base, second, count * copies)
        first, texts = self._prompts(prompt)
        low = self.base.generate(
            first,
            weights=weights,
            negative_prompt=negatives,
            seed=seeds,
            num_images_per_prompt=copies,
            **shared,
            **base,
        )
        if job.stopped:
            return unfinished(low, self.side)
        # From here on every image is a prompt of its own, with its own small image and seed.
        known = super_resolution_known
        high = self.super_resolution.generate(
            texts.repeat(copies) if isinstance(texts, PromptEmbeds) else job.repeat(texts),
            weights=None if weights is None else self._enlarge(np.asarray(weights), copies),
            negative_prompt=job.repeat(negatives),
            seed=_second_seeds(seeds, copies),
            low_tokens=low.tokens,
            known=None if known is None else Known(*(np.repeat(x, copies, 0) for x in known)),
            **shared,
            **second,
        )
        return high._replace(low=low._replace(**first_of(low, len(high.tokens))))

    def _expect(self, job: Job, base: dict[str, Any], second: dict[str, Any], count: int) -> None:
        """Tells the one who looks on how many steps both scales have."""
        own = {name: x for name, x in base.items() if name not in NOT_OF_THE_SAMPLER}
        settings = base.get("resampling") or self.base.settings(**own)
        steps = [settings, self.super_resolution.settings(**second)]
        pieces = num_pieces(count, job.batch_size, self.base.mesh)
        job.expect(pieces * sum(len(one.shown_after()) for one in steps))

    def _prompts(self, prompt: Any) -> tuple[Any, Any]:
        """What each scale is given as prompts; the second reads texts alone."""
        if isinstance(prompt, PromptEmbeds):
            return prompt.part(PARTS[0]), prompt.part(PARTS[1])
        rows = as_conditions(prompt, text_limit(self.super_resolution.networks))
        return prompt, [[Condition(prompt=c.prompt) for c in row] for row in rows]

    def check_prompt(self, prompt: Any) -> None:
        """Raises PromptError, ValueError for what `generate` would refuse as a prompt."""
        if isinstance(prompt, PromptEmbeds):
            check_embeds(prompt, self.base.made_for(), PARTS[0])
            return
        limit = text_limit(self.super_resolution.networks)
        check_prompts([c.prompt for row in as_conditions(prompt, limit) for c in row], limit)

    def embed(self, prompts: Any, negative_prompt: str | Sequence[str] | None = "") -> PromptEmbeds:
        """What the text encoders of both scales make of prompts, for `prompt_embeds`.

        Raises:
          PromptError, ValueError: as `generate`.
        """
        self.check_prompt(prompts)
        asked = self._prompts(prompts)
        pipes = (self.base, self.super_resolution)
        made = [p.embed(x, negative_prompt) for p, x in zip(pipes, asked, strict=True)]
        parts = {name: one.parts[""] for name, one in zip(PARTS, made, strict=True)}
        made_for = {name: one.made_for[""] for name, one in zip(PARTS, made, strict=True)}
        return replace(made[0], parts=parts, made_for=made_for)

    @property
    def defaults(self) -> dict[str, Any]:
        """What a call uses where it says nothing else, of both scales."""
        return self.drawn_with({})

    def drawn_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size and both scales' settings, where `generate` is given these arguments."""
        theirs = {name: f"super_resolution_{ours}" for name, ours in SECOND.items()}
        second = {name: options.get(ours) for name, ours in theirs.items()}
        large = self.super_resolution.drawn_with(second)
        others = ("height", "width", "super_resolution_known", *theirs.values())
        first = {name: x for name, x in options.items() if name not in others}
        own = {ours: large[name] for name, ours in theirs.items()}
        return self.base.drawn_with(first) | {"height": self.side, "width": self.side} | own

    def run_name(self) -> str:
        """A digest of both configs and weights: what records call the two runs."""
        both = (self.base.run_name(), self.super_resolution.run_name())
        if self._named.get(both) is None:
            self._named = {both: run_digest(self.parts())}
        return self._named[both]

    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size of the images in pixels. Raises ValueError for another."""
        self._check_size(height, width)
        return self.side, self.side

    def from_image(
        self, given: GivenImage, strength: float, prompts: int, sampler: str | None
    ) -> dict[str, Any]:
        """Arguments of `generate` that start from an image, or keep what a mask does not mark.

        With a strength the small image starts from the given one; it is then enlarged.
        """
        start = start_options(self.base.config, self.base.settings(sampler), strength)
        return tokens_of_image(self, start, given, strength, prompts)

    def arrays(self, result: Generation) -> np.ndarray:
        """The large images' tokens."""
        return result.tokens

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Config and weights of the super-resolution, and those of the base."""
        return {"": self.super_resolution.parts()[""], "base": self.base.parts()[""]}

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Padded lengths of texts in both runs. Raises PromptError where one is too long."""
        return (*self.base.text_lengths(texts), *self.super_resolution.text_lengths(texts))

    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError for a size or a sampler's setting that the base cannot draw with."""
        self._check_size(settings.pop("height", None), settings.pop("width", None))
        self.base.settings(**settings)

    def _check_size(self, height: int | None, width: int | None) -> None:
        for name, given in (("height", height), ("width", width)):
            if given not in (None, self.side):
                raise ValueError(
                    f"{name} is {given}; these runs draw {self.side}x{self.side} pixels only"
                )

    def cut_text(self, text: str) -> str:
        """The part of a text that is not too long for either run, where they can tell."""
        return self.base.cut_text(self.super_resolution.cut_text(text))

    def strip(self, generation: Generation, batch_size: int = 64) -> np.ndarray:
        """The images after every step of both scales, of a generation with a trace.

        Returns:
          float32 [steps, count, side, side, 3] in [0, 1]; the small images' pixels are repeated.

        Raises:
          ValueError: no trace.
        """
        assert generation.low is not None
        small = self.base.strip(generation.low, batch_size)
        large = self.super_resolution.strip(generation, batch_size)
        places = np.arange(self.side) * small.shape[2] // self.side
        return np.concatenate([small[:, :, places][:, :, :, places], large])

    def steps_of(
        self, generation: Generation, prompt: Any, options: Mapping[str, Any]
    ) -> np.ndarray:
        """As `strip`: tokens are decoded as they are."""
        return self.strip(generation, options.get("batch_size", 64))

    def _enlarge(self, weights: np.ndarray, copies: int) -> np.ndarray:
        """The second scale's weights of mixed conditions, which the base has checked."""
        if weights.ndim == 4:
            networks: Any = self.super_resolution.networks
            places = np.arange(networks.predictor.grid) * networks.low_grid
            places //= networks.predictor.grid
            weights = weights[:, :, places][..., places]
        return weights if weights.ndim == 1 else np.repeat(weights, copies, axis=0)

    def encode_low(self, images: np.ndarray) -> np.ndarray:
        """Images in [0, 1] [count, side, side, 3] -> tokens of the same images made small.

        They are made small as in the super-resolution's training.
        """
        return self.super_resolution.encode_low(images)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images in [0, 1] [count, side, side, 3] -> tokens of the second scale's tokenizer."""
        return self.super_resolution.encode(images)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] of the second scale -> images float32 [count, H, W, 3]."""
        return self.super_resolution.decode(tokens)

    def keep_inside(
        self, pixels: np.ndarray, margins: tuple[tuple[int, int], tuple[int, int]]
    ) -> dict[str, Any]:
        """Draws around an image on a larger canvas: tokens that no margin touches stay.

        Tokens at the image's border see the margin, where its outermost pixels are repeated.

        Args:
          pixels: float32 [height, width, 3].
          margins: pixels ((top, bottom), (left, right)); with them the image has the one size.

        Returns:
          Arguments of `generate`: the known tokens of both scales.

        Raises:
          ImageError: the margins touch every token of the small image.
        """
        marked = np.pad(np.zeros(pixels.shape[:2], bool), margins, constant_values=True)
        return keep_unmasked(self, np.pad(pixels, (*margins, (0, 0)), mode="edge"), marked)


def _count(prompt: Any, limit: int) -> int:
    return len(prompt if isinstance(prompt, PromptEmbeds) else as_conditions(prompt, limit))


def _second_seeds(seeds: Sequence[int], copies: int) -> list[int]:
    """A seed for each image's second scale, from its prompt's seed and its number alone.

    The base's own seed would start both scales from related noise, and give a prompt's images the
    same.
    """
    return child_seeds(numbered(seeds, copies), SECOND_SCALE)
