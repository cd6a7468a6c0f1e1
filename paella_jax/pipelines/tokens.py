"""A token predictor as a call: conditions -> encoders -> sampler -> VQGAN decode -> images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.data.sizes import whole_image_conds
from paella_jax.families.cells import sampler_fields
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.tokens import load_networks
from paella_jax.families.vqgan import swap_decoder
from paella_jax.images.read import read_images
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.base import Generation, Job, Pipeline, all_devices, in_batches, on_mesh
from paella_jax.pipelines.geometry import Scale, Sizes
from paella_jax.pipelines.prompts import (
    Condition,
    as_conditions,
    build_inputs,
    clip_ids,
    padded_lengths,
    text_limit,
    tokenize,
)
from paella_jax.pipelines.request import (
    Form,
    Request,
    check_known,
    check_start,
    check_tokens,
    check_weights,
    draw_request,
)
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import CheckpointError, read_config
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_loop import Known
from paella_jax.sampling.token_sampler import TokenSettings, token_settings
from paella_jax.training.placing import fetch
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree

# A text, a Condition, a list with one of them per image, or a list of lists of conditions to mix.
Prompt = str | Condition | Sequence[Any]


class TokenPipeline(Pipeline):
    """Text-to-image with one trained run.

    Calls with the same shapes and step count reuse one compiled program, whatever their prompts,
    seeds, temperatures and guidance.

    Attributes:
      networks: predictor, tokenizer and encoders; `params` and `frozen` are their parameters.
      sizes: the images it draws.
    """

    def __init__(
        self,
        networks: TokenNetworks,
        params: Tree,
        frozen: Tree,
        config: ConfigDict,
        mesh: Mesh | None = None,
    ) -> None:
        """`mesh` is the one that the weights of a run in training lie on; default all devices."""
        self.networks = networks
        self.config = config
        self.mesh = mesh or all_devices()
        self.set_params(params, frozen)
        self.sizes = Sizes.of(networks, config)
        # Made once: a new jit of a bound method at every call would trace and compile again.
        self._decode = jax.jit(networks.decode_tokens)
        self._encode = jax.jit(networks.encode_images)
        self._encode_low = jax.jit(networks.encode_low)
        self._embed = jax.jit(networks.embed_images)
        self._embed_texts = jax.jit(networks.embed_texts)
        draw = partial(draw_request, networks)
        self._generate = Program("the sampler", draw, static_argnames="form")

    def set_params(self, params: Tree, frozen: Tree) -> None:
        """Replaces the weights; nothing is compiled again."""
        self.params, self.frozen = on_mesh((params, frozen), self.mesh)

    @property
    def scales(self) -> list[Scale]:
        """Its one token map, for image tasks (editing.py)."""
        return [Scale("known", "image", self.encode, self.sizes.token)]

    def settings(self, sampler: str | None = None, **changes: Any) -> TokenSettings:
        """The run's sampler settings with the given ones replaced; None keeps the run's.

        Temperatures and guidance take one number or a (first, last) pair. `sampler` chooses what
        is corrupted again: "random" or "confidence".
        """
        cell = self.config.cell
        base = sampler_fields(self.config)
        return token_settings(cell.corruption, sampler or cell.sampler, base, changes)

    def generate(
        self,
        prompt: Prompt,
        *,
        weights: np.ndarray | Sequence[Any] | None = None,
        image_tokens: np.ndarray | None = None,
        known: Known | None = None,
        low_tokens: np.ndarray | None = None,
        resampling: ResampleSettings | None = None,
        **options: Any,
    ) -> Generation:
        """As calling the pipeline, with the tokens and with what image tasks need.

        Args:
          prompt: as in a call; `[[a, b], [c, d]]` makes two images that mix two conditions each.
          weights: of the mixed conditions, [conditions], [prompts, conditions] or
            [prompts, conditions, h, w] (a region each); by default all the same.
          image_tokens: clean tokens [prompts, h, w] to start from at level `t_start` (`strength`
            of a masked network's confidence sampler).
          known: tokens to keep and where to draw, [prompts, h, w] each.
          low_tokens: [prompts, low, low], what a super-resolution network enlarges.
          resampling: edits `image_tokens` by drawing some of them again and again, instead of a
            sampler (sampling/resample.py).
          **options: those of `Job` (base.py), and sampler settings (`settings`).

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        job, sampler = Job.take(options)
        limit = text_limit(self.networks)
        rows = as_conditions(prompt, limit)
        count = len(rows)
        negatives, keys = job.negatives(count, limit), job.keys(count)
        grid, codes = self.sizes.grid(job.height, job.width), self.networks.predictor.codebook_size
        settings = resampling or self.settings(**sampler)
        check_start(settings, image_tokens, known, sampler)
        if image_tokens is not None:
            image_tokens = check_tokens(image_tokens, count, grid, "image_tokens", codes)
        if known is not None:
            known = check_known(known, count, grid, codes)
        shared = self._shared_inputs(count, grid, low_tokens)
        conditions = tuple(
            replace(build_inputs(self.networks, self.config, column, grid, self.embed), **shared)
            for column in zip(*rows, strict=True)
        )
        request = Request(
            conditions=conditions,
            unconditional=self._unconditional(negatives, shared),
            weights=check_weights(weights, count, len(conditions), grid),
            keys=None,
            image_tokens=image_tokens,
            known=known,
        )
        copies = job.num_images_per_prompt
        request = jax.tree.map(lambda x: np.repeat(x, copies, axis=0), request).replace(keys=keys)
        joint = bool(self.config.sampler.get("joint_guidance", False))
        form, ramps = Form(settings.without_ramps(), grid, joint, job.trace), settings.ramps()
        run = lambda piece: self._generate(self.params, self.frozen, piece, ramps, form=form)
        images, tokens, *history = in_batches(run, request, len(keys), job.batch_size, self.mesh)
        return Generation(images, tokens, np.moveaxis(history[0], 1, 0) if job.trace else None)

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Its config and weights."""
        return {"": (self.config, (self.params, self.frozen))}

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Padded lengths of texts, each alone. Raises PromptError where one is too long."""
        return padded_lengths(self.networks, self.config, texts)

    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError for a size or a sampler's setting that it cannot draw with."""
        self.sizes.grid(settings.pop("height", None), settings.pop("width", None))
        self.settings(**settings)

    def cut_text(self, text: str) -> str:
        """The part of a text that is not too long."""
        tokenizer = self.networks.text_tokenizer or self.networks.clip_tokenizer
        return text if tokenizer is None else tokenizer.cut(text)

    def _states(self, result: Generation) -> Iterable[np.ndarray]:
        return () if result.trace is None else self.strip(result)

    def _unconditional(
        self, negatives: Sequence[str], shared: dict[str, np.ndarray]
    ) -> ConditionInputs:
        """What guidance leads away from: the negative prompts."""
        ids, mask = tokenize(self.networks, self.config, negatives)
        return ConditionInputs(ids, mask, clip_ids=clip_ids(self.networks, negatives), **shared)

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
            shared["low_tokens"] = check_tokens(
                low_tokens, count, (side, side), "low_tokens", codes
            )
        elif low_tokens is not None:
            raise ValueError("low_tokens belong to super-resolution runs; this is none")
        if "micro_conds" in networks.takes:
            pixels = networks.vqgan.downsampling
            whole = whole_image_conds(grid[0] * pixels, grid[1] * pixels)
            shared["micro_conds"] = np.tile(whole, (count, 1))
        return shared

    def condition_inputs(self, prompts: Sequence[str], grid: tuple[int, int]) -> ConditionInputs:
        """What the networks are conditioned on for texts alone; numpy arrays, texts in front."""
        rows = as_conditions(list(prompts), text_limit(self.networks))
        column = [row[0] for row in rows]
        inputs = build_inputs(self.networks, self.config, column, grid, self.embed)
        return replace(inputs, **self._shared_inputs(len(column), grid, None))

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1]."""
        return fetch(self._decode(self.frozen, jnp.asarray(tokens)))

    def strip(self, generation: Generation) -> np.ndarray:
        """The images after every step, of a generation with a trace.

        Returns:
          float32 [steps, count, H, W, 3] in [0, 1].

        Raises:
          ValueError: no trace.
        """
        if generation.trace is None:
            raise ValueError("the generation has no intermediate steps; draw it with trace=True")
        return np.stack([self.decode(tokens) for tokens in generation.trace])

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> tokens int32 [count, h, w]."""
        return fetch(self._encode(self.frozen, jnp.asarray(read_images(images))))

    def encode_low(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> what super-resolution enlarges."""
        return fetch(self._encode_low(self.frozen, jnp.asarray(read_images(images))))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Images [count, H, W, 3], uint8 or in [0, 1] -> embeddings [count, width].

        Raises:
          ValueError: a run without an image encoder.
        """
        if self.networks.image_encoder is None:
            raise ValueError("this run has no image encoder (image_encoder.kind is none)")
        return fetch(self._embed(self.params, self.frozen, jnp.asarray(read_images(images))))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> CLIP embeddings [count, width], what a CLIP prior takes.

        Raises:
          ValueError: a run without CLIP's text tower.
        """
        ids = clip_ids(self.networks, list(texts))
        if ids is None:
            raise ValueError("this run has no CLIP text tower (clip.folder was not given)")
        return fetch(self._embed_texts(self.frozen, jnp.asarray(ids)))

    def keep_inside(
        self, pixels: np.ndarray, margins: tuple[tuple[int, int], tuple[int, int]]
    ) -> dict[str, Any]:
        """Draws around an image on a larger canvas: its tokens stay, and it is encoded alone.

        Args:
          pixels: float32 [height, width, 3], of whole tokens.
          margins: pixels ((top, bottom), (left, right)), of whole tokens.

        Returns:
          Arguments of `generate`: the canvas's size and its known tokens.

        Raises:
          ImageError: sides of the image that do not fit.
        """
        self.sizes.check_part(*pixels.shape[:2])
        tokens = self.encode(pixels[None])[0]
        border = [(a // self.sizes.token, b // self.sizes.token) for a, b in margins]
        generate = np.pad(np.zeros(tokens.shape, bool), border, constant_values=True)
        known = Known(np.pad(tokens, border)[None], generate[None])
        height, width = (side * self.sizes.token for side in generate.shape)
        return {"known": known, **self.sizes.options(height, width)}


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
