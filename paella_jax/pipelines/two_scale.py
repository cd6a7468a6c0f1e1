"""MUSE's two scales: a base run draws a small image, a super-resolution run enlarges it.

Both are `TokenPipeline`s; what passes from one to the other are the small image's tokens
(docs/models/muse.md 1.1, 1.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.byte_tokenizer import check_prompts
from paella_jax.pipelines.base import Generation, Job, Pipeline, image_keys
from paella_jax.pipelines.geometry import OneSize, Scale, keep_unmasked
from paella_jax.pipelines.prompts import Condition, as_conditions, text_limit
from paella_jax.pipelines.tokens import Prompt, TokenPipeline
from paella_jax.sampling.token_loop import Known
from paella_jax.typing import Tree

Range = float | tuple[float, float]
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
        rows = as_conditions(prompt, limit)
        check_prompts([c.prompt for row in rows for c in row], limit)
        count, copies = len(rows), job.num_images_per_prompt
        negatives, seeds = job.negatives(count, limit), job.seeds(count)
        shared: dict[str, Any] = {"batch_size": job.batch_size, "trace": job.trace}
        low = self.base.generate(
            prompt,
            weights=weights,
            negative_prompt=negatives,
            seed=seeds,
            num_images_per_prompt=copies,
            **shared,
            **base,
        )
        # From here on every image is a prompt of its own, with its own small image and seed.
        texts = [[Condition(prompt=c.prompt) for c in row] for row in rows]
        known = super_resolution_known
        high = self.super_resolution.generate(
            job.repeat(texts),
            weights=None if weights is None else self._enlarge(np.asarray(weights), copies),
            negative_prompt=job.repeat(negatives),
            seed=_second_seeds(seeds, copies),
            low_tokens=low.tokens,
            known=None if known is None else Known(*(np.repeat(x, copies, 0) for x in known)),
            **shared,
            **second,
        )
        return high._replace(low=low)

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

    def _states(self, result: Generation) -> Iterable[np.ndarray]:
        """The images of both scales, the small ones in their own size."""
        for pipe, generation in ((self.base, result.low), (self.super_resolution, result)):
            if generation is not None and generation.trace is not None:
                yield from (pipe.decode(tokens) for tokens in generation.trace)

    def strip(self, generation: Generation) -> np.ndarray:
        """The images after every step of both scales, of a generation with a trace.

        Returns:
          float32 [steps, count, side, side, 3] in [0, 1]; the small images' pixels are repeated.

        Raises:
          ValueError: no trace.
        """
        assert generation.low is not None
        small, large = self.base.strip(generation.low), self.super_resolution.strip(generation)
        places = np.arange(self.side) * small.shape[2] // self.side
        return np.concatenate([small[:, :, places][:, :, :, places], large])

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


def check_pair(base: TokenPipeline, super_resolution: TokenPipeline) -> None:
    """Checks that a base's tokens are those a super-resolution run was trained to enlarge.

    Raises:
      ValueError: a run of the wrong kind, or another tokenizer or token map.
    """
    if super_resolution.networks.low_vqgan is None:
        network = super_resolution.config.cell.network
        raise ValueError(
            f"the second run has cell.network={network}, which enlarges nothing; give a run of "
            "cell.network=super_resolution"
        )
    if base.networks.low_vqgan is not None:
        raise ValueError(
            "the first run is a super-resolution itself; give the run that draws small pictures"
        )
    side = base.config.data.image_size // base.networks.vqgan.downsampling
    low = super_resolution.networks.low_grid
    if side != low:
        raise ValueError(
            f"the base draws {side}x{side} tokens, the super-resolution enlarges {low}x{low}; give "
            f"a base of {low}x{low} tokens, or train with --config.super_resolution.low_grid={side}"
        )
    ours, theirs = _codebook(base, "vqgan"), _codebook(super_resolution, "low_vqgan")
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        raise ValueError(
            f"the base's tokenizer ({ours.shape[0]} codes) is not the one whose tokens the "
            f"super-resolution enlarges ({theirs.shape[0]} codes); train the super-resolution with "
            "--config.low_tokenizer of the base's tokenizer, or give the base of that tokenizer"
        )


def _codebook(pipe: TokenPipeline, name: str) -> np.ndarray:
    return np.asarray(pipe.frozen[name]["params"]["codebook"])


def _second_seeds(seeds: Sequence[int], copies: int) -> list[int]:
    """A seed for each image's second scale, from its prompt's seed and its number alone.

    The base's own seed would start both scales from related noise, and give a prompt's images the
    same.
    """
    child = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, SECOND_SCALE)))
    return np.asarray(child(image_keys(seeds, copies))).tolist()
