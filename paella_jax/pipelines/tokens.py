"""Conditions -> encoders -> sampler -> VQGAN decode -> images: what `paella_jax.load` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.data.sizes import whole_image_conds
from paella_jax.encoders.byte_tokenizer import check_prompts
from paella_jax.families.cells import sampler_fields
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.tokens import load_networks
from paella_jax.families.vqgan import swap_decoder
from paella_jax.images.read import read_images
from paella_jax.images.write import to_uint8
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.base import check_side, image_keys, in_batches, one_per_prompt
from paella_jax.pipelines.prompts import (
    Condition,
    as_conditions,
    build_inputs,
    clip_ids,
    text_limit,
    tokenize,
)
from paella_jax.pipelines.request import Request, draw_request
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import read_config
from paella_jax.sampling.renoise import Known
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_sampler import TokenSettings, starts_from_noise, token_settings
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.typing import Tree

# A text, a Condition, a list of pictures, or a list of lists of conditions to mix.
Prompt = str | Condition | Sequence[Any]


class Generation(NamedTuple):
    """Images with the tokens behind them.

    Attributes:
      images: float32 [count, height, width, 3] in [0, 1].
      tokens: int32 [count, h, w].
      trace: int32 [num_steps, count, h, w], tokens after every step; None unless asked for. Of a
        masked network each step's complete prediction, before it is masked again.
    """

    images: np.ndarray
    tokens: np.ndarray
    trace: np.ndarray | None


class TokenPipeline:
    """Text-to-image with one trained run.

    Calls with the same shapes and step count reuse one compiled program, whatever their prompts,
    seeds, temperatures and guidance.
    """

    def __init__(self, networks: TokenNetworks, params: Tree, frozen: Tree, config: ConfigDict):
        self.networks = networks
        self.config = config
        self.mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
        self.set_params(params, frozen)
        # Made once: a new jit of a bound method at every call would trace and compile again.
        self._decode = jax.jit(networks.decode_tokens)
        self._encode = jax.jit(networks.encode_images)
        self._encode_low = jax.jit(networks.encode_low)
        self._embed = jax.jit(networks.embed_images)
        self._embed_texts = jax.jit(networks.embed_texts)
        self._generate = jax.jit(
            partial(draw_request, networks), static_argnames=("settings", "grid", "joint", "trace")
        )

    def set_params(self, params: Tree, frozen: Tree) -> None:
        """Replaces the weights; nothing is compiled again."""
        self.params, self.frozen = jax.device_put((params, frozen), replicated(self.mesh))

    def settings(self, sampler: str | None = None, **changes: Any) -> TokenSettings:
        """The run's sampler settings with the given ones replaced; None keeps the run's.

        Temperatures and guidance take one number or a (first, last) pair. `sampler` chooses what
        is corrupted again: "random" or "confidence".
        """
        cell = self.config.cell
        base = sampler_fields(self.config)
        return token_settings(cell.corruption, sampler or cell.sampler, base, changes)

    def __call__(
        self,
        prompt: Prompt,
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        temperature: float | tuple[float, float] | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        callback: Callable[[int, np.ndarray], None] | None = None,
        **sampler: Any,
    ) -> list[Image.Image] | np.ndarray:
        """Generates images.

        Args:
          prompt: one text or several; `Condition`s (conditions.py) say more than text.
          negative_prompt: what to steer away from; one text, or one per prompt.
          height: pixels; default the training size. So is width.
          width: pixels.
          num_steps: predictions; fewer is faster.
          guidance_scale: 1 switches guidance off; a pair ramps from the first to the last step.
          temperature: of the draw; a pair ramps.
          seed: one seed, or one per prompt. An image depends on its prompt, its seed and its number
            among the prompt's images, not on the rest of the call.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          output_type: "pil" or "array" (float32 [count, height, width, 3] in [0, 1]).
          callback: called as (step, images so far) for every step once sampling is done.
          **sampler: further sampler settings (`settings`), and arguments of `generate`.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if output_type not in ("pil", "array"):
            raise ValueError(f"output_type must be 'pil' or 'array', got {output_type!r}")
        result = self.generate(
            prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            trace=callback is not None,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            **sampler,
        )
        if callback is not None and result.trace is not None:
            for step, images in enumerate(self.strip(result)):
                callback(step, images)
        if output_type == "array":
            return result.images
        return [Image.fromarray(image) for image in to_uint8(result.images)]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1]."""
        return np.asarray(self._decode(self.frozen, jnp.asarray(tokens)))

    def strip(self, generation: Any) -> np.ndarray:
        """The pictures after every step, of a generation with a trace.

        Returns:
          float32 [steps, count, H, W, 3] in [0, 1].

        Raises:
          ValueError: no trace.
        """
        if generation.trace is None:
            raise ValueError("the generation has no intermediate steps; draw it with trace=True")
        return np.stack([self.decode(tokens) for tokens in generation.trace])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> tokens."""
        return np.asarray(self._encode(self.frozen, jnp.asarray(read_images(images))))

    def encode_low(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> what super-resolution enlarges."""
        return np.asarray(self._encode_low(self.frozen, jnp.asarray(read_images(images))))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> embeddings [count, width]."""
        if self.networks.image_encoder is None:
            raise ValueError("this run has no image encoder (image_encoder.kind is none)")
        return np.asarray(self._embed(self.params, self.frozen, jnp.asarray(read_images(images))))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> CLIP embeddings [count, width], what a CLIP prior takes."""
        ids = clip_ids(self.networks, list(texts))
        if ids is None:
            raise ValueError("this run has no CLIP text tower (clip.folder was not given)")
        return np.asarray(self._embed_texts(self.frozen, jnp.asarray(ids)))

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
        image_tokens: np.ndarray | None = None,
        known: Known | None = None,
        low_tokens: np.ndarray | None = None,
        resampling: ResampleSettings | None = None,
        **sampler: Any,
    ) -> Generation:
        """As calling the pipeline, with the tokens and with what editing.py needs.

        Args:
          prompt: as in a call; `[[a, b], [c, d]]` makes two pictures that mix two conditions each.
          weights: of the mixed conditions, [conditions], [pictures, conditions] or
            [pictures, conditions, h, w] (a region each); default equal shares.
          negative_prompt: as in a call. So are height, width, seed and num_images_per_prompt.
          height: pixels.
          width: pixels.
          seed: one, or one per picture.
          num_images_per_prompt: images of each picture's conditions.
          batch_size: bounds the images per program.
          trace: also return the tokens after every step.
          image_tokens: clean tokens [pictures, h, w] to start from at level `t_start` (`strength`
            of a masked network's confidence sampler).
          known: tokens to keep and where to draw, [pictures, h, w] each.
          low_tokens: [pictures, low, low], what a super-resolution network enlarges.
          resampling: edits `image_tokens` by drawing some of them again and again, instead of a
            sampler (mask_free_editing.py).
          **sampler: see `settings`.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        limit = text_limit(self.networks)
        rows = as_conditions(prompt, limit)
        count, copies = len(rows), num_images_per_prompt
        negatives = check_prompts(negative_prompt, limit, allow_empty=True)
        negatives = one_per_prompt(negatives, count, "negative_prompt")
        keys = image_keys(one_per_prompt(seed, count, "seed"), copies)
        grid, codes = self._grid(height, width), self.networks.predictor.codebook_size
        settings = resampling or self.settings(**sampler)
        _check_start(settings, image_tokens, known, sampler)
        if image_tokens is not None:
            image_tokens = _tokens(image_tokens, count, grid, "image_tokens", codes)
        if known is not None:
            known = _known(known, count, grid, codes)
        shared = self._shared_inputs(count, grid, low_tokens)
        conditions = tuple(
            replace(build_inputs(self.networks, self.config, column, grid, self.embed), **shared)
            for column in zip(*rows, strict=True)
        )
        request = Request(
            conditions=conditions,
            unconditional=self._unconditional(negatives, shared),
            weights=_weights(weights, count, len(conditions), grid),
            keys=None,
            image_tokens=image_tokens,
            known=known,
        )
        request = jax.tree.map(lambda x: np.repeat(x, copies, axis=0), request).replace(keys=keys)
        run = lambda piece: self._generate(
            self.params,
            self.frozen,
            piece,
            settings.ramps(),
            settings=settings.without_ramps(),
            grid=grid,
            joint=bool(self.config.sampler.get("joint_guidance", False)),
            trace=trace,
        )
        images, tokens, *history = in_batches(run, request, len(keys), batch_size, self.mesh)
        return Generation(images, tokens, np.moveaxis(history[0], 1, 0) if trace else None)

    def _unconditional(
        self, negatives: Sequence[str], shared: dict[str, np.ndarray]
    ) -> ConditionInputs:
        """What guidance leads away from: the negative prompts."""
        ids, mask = tokenize(self.networks, self.config, negatives)
        return ConditionInputs(ids, mask, clip_ids=clip_ids(self.networks, negatives), **shared)

    def condition_inputs(self, prompts: Sequence[str], grid: tuple[int, int]) -> ConditionInputs:
        """What the networks are conditioned on for texts alone; numpy arrays, texts in front."""
        rows = as_conditions(list(prompts), text_limit(self.networks))
        column = [row[0] for row in rows]
        inputs = build_inputs(self.networks, self.config, column, grid, self.embed)
        return replace(inputs, **self._shared_inputs(len(column), grid, None))

    @property
    def divisor(self) -> int:
        """Image sides must be multiples of this."""
        return self.networks.vqgan.downsampling * self.networks.predictor.grid_divisor

    @property
    def only_side(self) -> int:
        """Height and width of all images where positions are learned; 0 where sizes are free."""
        return self.networks.vqgan.downsampling * getattr(self.networks.predictor, "grid", 0)

    def _grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        pixels, side_of_all = self.networks.vqgan.downsampling, self.only_side
        default = self.config.data.image_size
        size = [default if side is None else side for side in (height, width)]
        for name, side in zip(("height", "width"), size, strict=True):
            check_side(name, side, self.divisor)
        if side_of_all and size != [side_of_all, side_of_all]:
            positions = side_of_all // pixels
            raise ValueError(
                f"{size[0]}x{size[1]} pixels are {size[0] // pixels}x{size[1] // pixels} tokens; "
                f"this network has learned positions for {positions}x{positions} only: draw "
                f"{side_of_all}x{side_of_all} pixels"
            )
        return size[0] // pixels, size[1] // pixels

    def _shared_inputs(
        self, count: int, grid: tuple[int, int], low_tokens: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """What the conditions and the unconditional prediction have in common."""
        networks, shared = self.networks, {}
        if networks.low_vqgan is not None:
            if low_tokens is None:
                raise ValueError(
                    "this network enlarges pictures: give low_tokens, or load it with a base by "
                    "paella_jax.load(BASE, super_resolution=RUN)"
                )
            side = networks.low_grid
            codes = networks.low_vqgan.codebook_size
            shared["low_tokens"] = _tokens(low_tokens, count, (side, side), "low_tokens", codes)
        elif low_tokens is not None:
            raise ValueError("low_tokens belong to super-resolution runs; this is none")
        if "micro_conds" in self.networks.takes:
            pixels = networks.vqgan.downsampling
            whole = whole_image_conds(grid[0] * pixels, grid[1] * pixels)
            shared["micro_conds"] = np.tile(whole, (count, 1))
        return shared


def _check_start(
    settings: TokenSettings | ResampleSettings, image_tokens: Any, known: Any, sampler: Any
) -> None:
    """Raises ValueError where settings that start from an image come without one."""
    if isinstance(settings, ResampleSettings):
        settings.check()
        if image_tokens is None:
            raise ValueError("resampling edits an image; give image_tokens")
        unused = sorted(name for name, value in sampler.items() if value is not None)
        if unused:
            raise ValueError(f"mask-free editing runs no sampler: {', '.join(unused)} unused")
    elif image_tokens is None and known is None and not starts_from_noise(settings):
        raise ValueError("t_start (or strength) below 1 starts from an image; give image_tokens")


def _weights(
    given: Any, pictures: int, conditions: int, grid: tuple[int, int]
) -> np.ndarray | None:
    """Checks mixing weights; float32 [pictures, conditions(, h, w)]."""
    if given is None:
        if conditions == 1:
            return None
        return np.full((pictures, conditions), 1.0 / conditions, np.float32)
    weights = np.asarray(given, np.float32)
    if weights.ndim == 1:
        weights = np.broadcast_to(weights, (pictures, *weights.shape))
    shapes = ((pictures, conditions), (pictures, conditions, *grid))
    if weights.shape not in shapes:
        raise ValueError(
            f"weights have shape {np.shape(given)}; {conditions} conditions in {pictures} pictures "
            f"need one weight per condition: [{conditions}], {shapes[0]} or {shapes[1]}"
        )
    if not np.isfinite(weights).all() or not (weights.sum(1) > 0).all():
        raise ValueError("weights must be finite and have a positive sum")
    return weights / weights.sum(1, keepdims=True)


def _known(known: Known, pictures: int, grid: tuple[int, int], codes: int) -> Known:
    generate = _map(known.generate, pictures, grid, "known.generate").astype(bool)
    kept = np.where(generate, 0, _map(known.tokens, pictures, grid, "known.tokens"))
    return Known(_tokens(kept, pictures, grid, "known.tokens", codes), generate)


def _tokens(given: Any, pictures: int, grid: tuple[int, int], name: str, codes: int) -> np.ndarray:
    array = _map(given, pictures, grid, name)
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() >= codes:
        raise ValueError(
            f"{name} ({array.dtype}, from {array.min()} to {array.max()}) must be whole numbers "
            f"from 0 to {codes - 1}, the tokenizer's codes"
        )
    return array


def _map(given: Any, pictures: int, grid: tuple[int, int], name: str) -> np.ndarray:
    array = np.asarray(given)
    if array.shape != (pictures, *grid):
        raise ValueError(
            f"{name} has shape {array.shape}; {pictures} pictures of {grid[0]}x{grid[1]} tokens "
            f"need {(pictures, *grid)}"
        )
    return array


def load_tokens(directory: str | Path, *, decoder: str | Path = "") -> TokenPipeline:
    """Loads a token predictor's newest checkpoint (Paella, MUSE, aMUSEd), or a converted one.

    Args:
      directory: run folder.
      decoder: run folder of a tokenizer with the same codes, whose decoder is used instead.

    Raises:
      CheckpointError: no run there, of another kind, incomplete or damaged.
      ConfigError: `decoder` has other codes.
    """
    workdir = Path(directory)
    config = read_config(workdir)
    if config.method != "tokens":
        raise CheckpointError(
            f"{workdir} holds a run of method {config.method!r}, not of a token predictor"
        )
    networks, frozen = load_networks(config, workdir)
    if decoder:
        vqgan, frozen["vqgan"] = swap_decoder(workdir, frozen["vqgan"], decoder)
        networks = replace(networks, vqgan=vqgan)
    params = restore_trained(workdir, config)
    if networks.text_is_joint and "text_encoder" not in params:
        raise CheckpointError(
            f"{workdir} holds converted weights without a text encoder; convert them again with "
            "--tokenizer VQGAN_RUN --text T5_FOLDER"
        )
    return TokenPipeline(networks, params, frozen, config)
