"""MUSE's two scales: a base run draws a small picture, a super-resolution run enlarges it.

Both are `TokenPipeline`s; what passes from one to the other are the small picture's tokens
(docs/models/muse.md 1.1, 1.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.encoders.byte_tokenizer import check_prompts
from paella_jax.images.write import to_uint8
from paella_jax.pipelines.base import image_keys, one_per_prompt
from paella_jax.pipelines.prompts import Condition, as_conditions, text_limit
from paella_jax.pipelines.tokens import Generation, Prompt, TokenPipeline
from paella_jax.sampling.token_loop import Known

Range = float | tuple[float, float]
SECOND_SCALE = 2**31 - 2  # number of an image key's child; the samplers use no number near it


class TwoScaleGeneration(NamedTuple):
    """As `Generation`, with the small pictures that were enlarged.

    Attributes:
      images: float32 [count, height, width, 3] in [0, 1].
      tokens: int32 [count, h, w].
      trace: int32 [num_steps, count, h, w], tokens after every step; None unless asked for.
      low: the same of the small pictures.
    """

    images: np.ndarray
    tokens: np.ndarray
    trace: np.ndarray | None
    low: Generation


class TwoScalePipeline:
    """Text-to-image with two trained runs.

    Attributes:
      base: draws the small pictures.
      super_resolution: enlarges them.
    """

    def __init__(self, base: TokenPipeline, super_resolution: TokenPipeline):
        """Joins two loaded runs.

        Raises:
          ValueError: a run of the wrong kind, or two that do not belong together.
        """
        check_pair(base, super_resolution)
        self.base = base
        self.super_resolution = super_resolution

    @property
    def side(self) -> int:
        """Height and width of the pictures in pixels."""
        networks: Any = self.super_resolution.networks
        return networks.predictor.grid * networks.vqgan.downsampling

    def __call__(
        self,
        prompt: Prompt,
        *,
        output_type: str = "pil",
        callback: Callable[[int, np.ndarray], None] | None = None,
        **options: Any,
    ) -> list[Image.Image] | np.ndarray:
        """Generates images.

        Args:
          prompt: as in `TokenPipeline`.
          output_type: "pil" or "array" (float32 [count, height, width, 3] in [0, 1]).
          callback: called as (step, images so far) once sampling is done: for the base's steps
            with small pictures, then for those of the super-resolution; the numbers go on.
          **options: of `generate`.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if output_type not in ("pil", "array"):
            raise ValueError(f"output_type must be 'pil' or 'array', got {output_type!r}")
        result = self.generate(prompt, trace=callback is not None, **options)
        if callback is not None:
            pairs = ((self.base, result.low.trace), (self.super_resolution, result.trace))
            steps = [(p, tokens) for p, trace in pairs if trace is not None for tokens in trace]
            for number, (pipe, tokens) in enumerate(steps):
                callback(number, pipe.decode(tokens))
        if output_type == "array":
            return result.images
        return [Image.fromarray(image) for image in to_uint8(result.images)]

    def generate(
        self,
        prompt: Prompt,
        *,
        weights: np.ndarray | Sequence[Any] | None = None,
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        batch_size: int = 64,
        trace: bool = False,
        super_resolution_steps: int | None = None,
        super_resolution_guidance: Range | None = None,
        super_resolution_temperature: Range | None = None,
        super_resolution_known: Known | None = None,
        **base: Any,
    ) -> TwoScaleGeneration:
        """As calling the pipeline, with the tokens of both scales.

        Args:
          prompt: as in `TokenPipeline`. Super-resolution reads the texts alone, so none may be
            empty; what else a `Condition` says is in the small picture.
          weights: of mixed conditions, as in `TokenPipeline`; regions are those of the base's
            token map, and are enlarged.
          negative_prompt: one text, or one per prompt; for both scales.
          height: pixels; only `side` is possible. So is width.
          width: pixels.
          seed: one, or one per prompt; an image depends on its prompt, its seed and its number.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          batch_size: bounds the images per program.
          trace: also return the tokens after every step.
          super_resolution_steps: of the second scale; default its run's. So are guidance and
            temperature, one number or a (first, last) pair.
          super_resolution_guidance: see above.
          super_resolution_temperature: see above.
          super_resolution_known: tokens to keep and where to draw, [prompts, h, w] each.
          **base: of the first scale: num_steps, guidance_scale, temperature and whatever else
            `TokenPipeline.generate` takes.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        for name, given in (("height", height), ("width", width)):
            if given not in (None, self.side):
                raise ValueError(
                    f"{name} is {given}; these runs draw {self.side}x{self.side} pixels only"
                )
        second: dict[str, Any] = {
            "num_steps": super_resolution_steps,
            "guidance_scale": super_resolution_guidance,
            "temperature": super_resolution_temperature,
        }
        self.super_resolution.settings(**second)
        limit = text_limit(self.super_resolution.networks)
        rows = as_conditions(prompt, limit)
        check_prompts([c.prompt for row in rows for c in row], limit)
        count, copies = len(rows), num_images_per_prompt
        negatives = check_prompts(negative_prompt, limit, allow_empty=True)
        negatives = one_per_prompt(negatives, count, "negative_prompt")
        seeds = one_per_prompt(seed, count, "seed")
        shared: dict[str, Any] = {"batch_size": batch_size, "trace": trace}
        low = self.base.generate(
            prompt,
            weights=weights,
            negative_prompt=negatives,
            seed=seeds,
            num_images_per_prompt=copies,
            **shared,
            **base,
        )
        # From here on every image is a prompt of its own, with its own small picture and seed.
        known = super_resolution_known
        high = self.super_resolution.generate(
            _texts(rows, copies),
            weights=None if weights is None else self._enlarge(np.asarray(weights), copies),
            negative_prompt=_repeat(negatives, copies),
            seed=_second_seeds(seeds, copies),
            low_tokens=low.tokens,
            known=None if known is None else Known(*(np.repeat(x, copies, 0) for x in known)),
            **shared,
            **second,
        )
        return TwoScaleGeneration(*high, low)

    def _enlarge(self, weights: np.ndarray, copies: int) -> np.ndarray:
        """The second scale's weights of mixed conditions, which the base has checked."""
        if weights.ndim == 4:
            networks: Any = self.super_resolution.networks
            places = np.arange(networks.predictor.grid) * networks.low_grid
            places //= networks.predictor.grid
            weights = weights[:, :, places][..., places]
        return weights if weights.ndim == 1 else np.repeat(weights, copies, axis=0)

    def encode_low(self, images: np.ndarray) -> np.ndarray:
        """Pictures in [0, 1] [count, side, side, 3] -> tokens of the same pictures made small.

        They are made small as in the super-resolution's training.
        """
        return self.super_resolution.encode_low(images)

    @property
    def config(self) -> ConfigDict:
        """Of the second scale, whose pictures are the result."""
        return self.super_resolution.config

    def encode(self, images: np.ndarray) -> np.ndarray:
        """As `TokenPipeline.encode`, by the second scale's tokenizer. So is `decode`."""
        return self.super_resolution.encode(images)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1]."""
        return self.super_resolution.decode(tokens)


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


def _texts(rows: Sequence[Sequence[Condition]], copies: int) -> list[list[Condition]]:
    """What super-resolution reads of the conditions, each `copies` times."""
    return _repeat([[Condition(prompt=c.prompt) for c in row] for row in rows], copies)


def _repeat(values: Sequence[Any], copies: int) -> list[Any]:
    return [value for value in values for _ in range(copies)]


def _second_seeds(seeds: Sequence[int], copies: int) -> list[int]:
    """A seed for each image's second scale, from its prompt's seed and its number alone.

    The base's own seed would start both scales from related noise, and give a prompt's images the
    same.
    """
    child = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, SECOND_SCALE)))
    return np.asarray(child(image_keys(seeds, copies))).tolist()
