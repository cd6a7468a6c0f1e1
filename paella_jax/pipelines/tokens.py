"""A token predictor as a call: conditions -> encoders -> sampler -> VQGAN decode -> images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.families.cells import sampler_fields
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.models.conditioning import ConditionInputs
from paella_jax.pipelines.base import Generation, Job, Pipeline
from paella_jax.pipelines.batches import all_devices, in_batches, num_pieces, on_mesh, piece_size
from paella_jax.pipelines.geometry import Scale, Sizes, tokens_of_image
from paella_jax.pipelines.given_image import GivenImage
from paella_jax.pipelines.narrow import holds_narrow
from paella_jax.pipelines.presets import start_options
from paella_jax.pipelines.prompt_embeds import PromptEmbeds, check_embeds
from paella_jax.pipelines.prompts import Condition, as_conditions, padded_lengths
from paella_jax.pipelines.records import NOT_OF_THE_SAMPLER, texts_of
from paella_jax.pipelines.request import (
    Form,
    Request,
    advance_request,
    check_known,
    check_start,
    check_tokens,
    check_weights,
    encode,
)
from paella_jax.pipelines.run_digests import encoders_digest
from paella_jax.pipelines.token_coder import TokenCoder
from paella_jax.pipelines.token_inputs import Inputs, TokenInputs
from paella_jax.pipelines.watch import in_groups
from paella_jax.sampling.guidance import runs_jointly
from paella_jax.sampling.loop import padded
from paella_jax.sampling.resample import ResampleSettings
from paella_jax.sampling.token_loop import Known
from paella_jax.sampling.token_sampler import TokenSettings, token_settings
from paella_jax.training.placing import batch_sharding, fetch, place
from paella_jax.training.pulse import Program
from paella_jax.typing import Tree

ENCODED = ("cell", "text", "clip", "image_encoder")  # of a config: what a prompt goes through

# A text, a Condition, a list with one of them per image, or a list of lists of conditions to mix;
# or all of that made into embeddings.
Prompt = str | Condition | Sequence[Any] | PromptEmbeds


class TokenPipeline(TokenCoder, Pipeline):
    """Text-to-image with one trained run.

    Calls of the same size reuse the compiled programs, whatever their prompts, seeds, numbers of
    steps, strengths, temperatures and guidance (but for guidance of 1, which runs half as much).
    Numbers of images are rounded up to powers of two.

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
        self.sizes = Sizes.of(networks, config)
        self.inputs = TokenInputs(networks, config, self.embed_images)
        self._narrows = mesh is None and holds_narrow(config.precision)
        self.set_params(params, frozen)
        self._make_coders()
        # Batches stay as they are cut: what another layout came in would be compiled again.
        out, advance = batch_sharding(self.mesh), partial(advance_request, networks)
        self._condition = Program("the text encoder", partial(encode, networks), out_shardings=out)
        self._advance = Program("the sampler", advance, static_argnames="form", out_shardings=out)

    def set_params(self, params: Tree, frozen: Tree) -> None:
        """Replaces the weights; nothing is compiled again."""
        self._whole = (params, frozen) if self._narrows else None
        self._made_for: str | None = None
        self._run = None
        if self._narrows:
            params, frozen = self._held(params, frozen)
        self.params, self.frozen = on_mesh((params, frozen), self.mesh)

    def _held(self, params: Tree, frozen: Tree) -> tuple[Tree, Tree]:
        """The weights in the types that they are used in."""
        from paella_jax.pipelines.held_tokens import held_tokens

        networks, grid = self.networks, self.sizes.grid(None, None)
        low = None if networks.low_vqgan is None else np.zeros((1, *[networks.low_grid] * 2), int)
        inputs = replace(self.inputs.of_negatives([""]), **self.inputs.shared(1, grid, low))
        return held_tokens(networks, (params, frozen), inputs, grid, self.settings())

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
        choice = cell.sampler if sampler is None else sampler
        return token_settings(cell.corruption, choice, base, changes)

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
          prompt: as in a call, or embeddings; `[[a, b], [c, d]]` makes two images that mix two
            conditions each.
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
        grid, codes = self.sizes.grid(job.height, job.width), self.networks.predictor.codebook_size
        conditions, unconditional, count = self._conditions(prompt, job, grid, low_tokens)
        images = job.images(count)
        settings = resampling or self.settings(**sampler)
        check_start(settings, image_tokens, known, sampler)
        if image_tokens is not None:
            image_tokens = check_tokens(image_tokens, count, grid, "image_tokens", codes)
        if known is not None:
            known = check_known(known, count, grid, codes)
        request = Request(
            conditions=conditions,
            unconditional=unconditional if settings.guided else None,
            weights=check_weights(weights, count, len(conditions), grid),
            images=None,
            image_tokens=image_tokens,
            known=known,
        )
        total, repeat = len(images.seeds), lambda x: np.repeat(x, len(images.seeds) // count, 0)
        request = jax.tree.map(repeat, request).replace(images=images)
        positions = piece_size(total, job.batch_size, self.mesh) * grid[0] * grid[1]
        joint = runs_jointly(self.config.sampler.get("joint_guidance"), positions / self.mesh.size)
        form = Form(settings.program(), grid, joint)
        job.expect(len(settings.shown_after()) * num_pieces(total, job.batch_size, self.mesh))
        run = lambda piece, rows: self._draw(piece, rows, settings, form, job)
        pixels, tokens, *history = in_batches(run, request, total, job, self.mesh)
        return Generation(pixels, tokens, np.moveaxis(history[0], 1, 0) if job.trace else None)

    def generate_around(self, prompt: Prompt, **options: Any) -> Generation:
        """As `generate` of what a mask leaves, in windows where they are needed (windows.py)."""
        from paella_jax.pipelines.windows import generate_around  # few calls need it

        return generate_around(self, prompt, **options)

    def _conditions(
        self, prompt: Prompt, job: Job, grid: tuple[int, int], low_tokens: np.ndarray | None
    ) -> tuple[tuple[Inputs, ...], Inputs, int]:
        """Conditions, what guidance leads away from, and for how many prompts."""
        conditions: tuple[Inputs, ...]
        unconditional: Inputs
        if isinstance(prompt, PromptEmbeds):
            one, unconditional = check_embeds(prompt, self.made_for()).parts[""]
            conditions, count = (one,), len(prompt)
        else:
            count = len(as_conditions(prompt, self.inputs.limit))
            unconditional = self.inputs.of_negatives(job.negatives(count, self.inputs.limit))
            conditions = self.inputs.of_prompts(prompt, grid)
        shared = self.inputs.shared(count, grid, low_tokens)
        add = lambda inputs: replace(inputs, **shared)
        return tuple(map(add, conditions)), add(unconditional), count

    def _draw(
        self, piece: Request, rows: int, settings: Any, form: Form, job: Job
    ) -> tuple[Any, ...]:
        """One batch: its conditions, its steps in groups, its images; see `in_batches`."""
        weights, course = (self.params, self.frozen), settings.course()
        piece = piece.encoded(partial(self._condition, *weights))
        advance = partial(self._advance, weights, piece, padded(course), form=form)
        decode = lambda tokens: self._decode(self.frozen, tokens)
        show = lambda reached: fetch(decode(reached[1]))[:rows]
        empty = np.zeros((piece.count, *form.grid), np.int32)
        nothing = place((empty, empty), batch_sharding(self.mesh))
        kept = settings.traced_steps() if job.trace else ()
        reached, history = in_groups(advance, nothing, course.edges, show, job.watch, kept)
        tokens = reached[1 if job.stopped else 0]  # what is not finished may hold masks
        states = (np.stack([fetch(x) for x in history], axis=1),) if job.trace else ()
        return decode(tokens), tokens, *states

    def embed(
        self, prompts: Prompt, negative_prompt: str | Sequence[str] | None = ""
    ) -> PromptEmbeds:
        """What the text encoders make of prompts, for `prompt_embeds` of any number of calls.

        Args:
          prompts: texts, or `Condition`s without a segmentation map.
          negative_prompt: what to steer away from, one text or one per prompt.

        Raises:
          PromptError, ValueError: as `generate`.
        """
        grid = self.sizes.grid(None, None)
        texts = texts_of(prompts)
        negatives = Job(negative_prompt).negatives(len(texts), self.inputs.limit)
        inputs = (self.inputs.of_prompts(prompts, grid), self.inputs.of_negatives(negatives))
        if len(inputs[0]) > 1:
            raise ValueError("embeddings hold one condition per image; give weights to a call")
        run = lambda piece, rows: self._condition(self.params, self.frozen, piece)
        encode_all = lambda one: in_batches(run, one, len(texts), Job(), self.mesh)
        parts = {"": (encode_all(inputs[0][0]), encode_all(inputs[1]))}
        return PromptEmbeds(tuple(texts), tuple(negatives), parts, {"": self.made_for()})

    def made_for(self) -> str:
        """A name of its encoders: what prompt embeddings must come from."""
        if self._made_for is None:
            config, weights = self.parts()[""]
            self._made_for = encoders_digest(config, weights, ENCODED)
        return self._made_for

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Its config and weights, as they were given."""
        return {"": (self.config, self._whole or (self.params, self.frozen))}

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

    @property
    def defaults(self) -> dict[str, Any]:
        """What a call uses where it says nothing else: size and the sampler's settings."""
        return self.drawn_with({})

    def drawn_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size and the settings that `generate` uses where it is given these arguments."""
        job, left = Job.take(options)
        own = {name: x for name, x in left.items() if name not in NOT_OF_THE_SAMPLER}
        settings = left.get("resampling") or self.settings(**own)
        height, width = self.size_of(job.height, job.width)
        return {"height": height, "width": width} | asdict(settings)

    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size of a call's images in pixels. Raises ValueError for one it does not draw."""
        rows, columns = self.sizes.grid(height, width)
        return rows * self.sizes.token, columns * self.sizes.token

    def check_prompt(self, prompt: Any) -> None:
        """Raises PromptError, ValueError for what `generate` would refuse as a prompt."""
        if not isinstance(prompt, PromptEmbeds):
            as_conditions(prompt, self.inputs.limit)

    def from_image(
        self, given: GivenImage, strength: float, prompts: int, sampler: str | None
    ) -> dict[str, Any]:
        """Arguments of `generate` that start from an image, or keep what a mask does not mark."""
        start = start_options(self.config, self.settings(sampler), strength)
        return tokens_of_image(self, start, given, strength, prompts)

    def arrays(self, result: Generation) -> np.ndarray:
        """A result's tokens."""
        return result.tokens

    def condition_inputs(self, prompts: Sequence[str], grid: tuple[int, int]) -> ConditionInputs:
        """What the networks are conditioned on for texts alone; numpy arrays, texts in front."""
        (inputs,) = self.inputs.of_prompts(list(prompts), grid)
        return replace(inputs, **self.inputs.shared(len(prompts), grid, None))

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
