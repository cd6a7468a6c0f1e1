"""What every pipeline does around its compiled programs: the call, options, keys and batches."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.encoders.byte_tokenizer import PromptError, check_prompts
from paella_jax.images.modes import WHITE
from paella_jax.images.read import ImageLike, read_image
from paella_jax.pipelines.batches import Numbered, numbered, one_per_prompt
from paella_jax.pipelines.call import DEFAULTS, answer
from paella_jax.pipelines.drawn_images import Images
from paella_jax.pipelines.given_image import GivenImage
from paella_jax.pipelines.prompt_embeds import PromptEmbeds
from paella_jax.pipelines.run_digests import run_digest
from paella_jax.pipelines.watch import Callback, Watch
from paella_jax.sharing.pipeline import Origin, save_pipeline
from paella_jax.typing import Tree


class Generation(NamedTuple):
    """Images with the tokens behind them.

    Attributes:
      images: float32 [count, height, width, 3] in [0, 1].
      tokens: int32 [count, h, w].
      trace: int32 [num_steps, count, h, w], tokens after every step; None unless asked for. For a
        masked network it is each step's complete prediction, before it is masked again.
      low: the same of the small images that were enlarged, where two runs drew together.
    """

    images: np.ndarray
    tokens: np.ndarray
    trace: np.ndarray | None
    low: Generation | None = None


@dataclass(frozen=True)
class Job:
    """Arguments that `generate` of every pipeline takes, as a call does; and two more.

    Attributes:
      batch_size: bounds the images per program.
      trace: also return what there was after every step.
      watch: looks on while it samples, and may stop it.
    """

    negative_prompt: str | Sequence[str] | None = ""
    height: int | None = None
    width: int | None = None
    seed: int | Sequence[int] = 0
    num_images_per_prompt: int = 1
    batch_size: int = 64
    trace: bool = False
    watch: Watch | None = None

    @classmethod
    def take(cls, options: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
        """The job among a call's options, and the options that are left."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own), {name: x for name, x in options.items() if name not in names}

    def negatives(self, count: int, max_length: int) -> list[str]:
        """A negative prompt for each of `count` prompts.

        Raises:
          PromptError, ValueError: an over-long text, or another number of them.
        """
        given = "" if self.negative_prompt is None else self.negative_prompt
        try:
            texts = check_prompts(given, max_length, allow_empty=True)
        except PromptError as error:
            raise PromptError(f"negative_prompt: {error}") from None
        return one_per_prompt(texts, count, "negative_prompt")

    def seeds(self, count: int) -> list[int]:
        """A seed for each of `count` prompts. Raises ValueError for another number of them."""
        return one_per_prompt(self.seed, count, "seed")

    def images(self, count: int) -> Numbered:
        """The images [count * copies] of `count` prompts. Raises ValueError."""
        return numbered(self.seeds(count), self.num_images_per_prompt)

    @property
    def stopped(self) -> bool:
        """Whether the one who looks on ended the sampling."""
        return self.watch is not None and self.watch.stopped

    def expect(self, steps: int) -> None:
        """Tells the one who looks on how many steps there will be."""
        if self.watch is not None:
            self.watch.expect(steps)

    def repeat(self, values: Iterable[Any]) -> list[Any]:
        """What belongs to the prompts -> the same for each of their images."""
        return [value for value in values for _ in range(self.num_images_per_prompt)]


class Pipeline(ABC):
    """The call that all pipelines share; the rest is each pipeline's own."""

    config: ConfigDict
    origin: Origin | None = None  # what `paella_jax.load` made it from
    _run: str | None = None  # what `run_name` found
    beside = "tokens"  # what a result has beside its images; Würstchen's are "latents"

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Writes it as a folder to share, which `paella_jax.load` reads; see `save_pipeline`.

        Args:
          folder: new, or written by this before.
          **options: `dtype` ("float32", "bfloat16"; default the run's own), `report` (a folder that
            `evaluate` wrote) and `licence` for the card.
        """
        return save_pipeline(self, folder, **options)

    def read(self, image: ImageLike) -> np.ndarray:
        """An image for a task, as the training images were read; `read_image` says of what kind."""
        return read_image(image, background_of(self.config))

    @abstractmethod
    def generate(self, prompt: Any, **options: Any) -> Any:
        """Draws; the result has `images`, and `trace` where asked for."""

    @abstractmethod
    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Config and weights of each run it draws with, by name; empty of the one that counts."""

    @property
    def can_encode(self) -> bool:
        """Whether there is what makes tokens or latents of images."""
        return True

    @property
    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """What a call uses where it says nothing else: size and the sampler's settings."""

    @abstractmethod
    def embed(self, prompts: Any, negative_prompt: str | Sequence[str] | None = "") -> PromptEmbeds:
        """What the text encoders make of prompts, for `prompt_embeds` of any number of calls.

        Example:
          >>> pipe(prompt_embeds=pipe.embed(["a red circle", "a blue square"]))
        """

    @abstractmethod
    def size_of(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The size of a call's images in pixels. Raises ValueError for one it does not draw."""

    @abstractmethod
    def check_prompt(self, prompt: Any) -> None:
        """Raises PromptError, ValueError for what `generate` would refuse as a prompt."""

    @abstractmethod
    def from_image(
        self, given: GivenImage, strength: float, prompts: int, sampler: str | None
    ) -> dict[str, Any]:
        """Arguments of `generate` that start from an image, or keep what a mask does not mark."""

    @abstractmethod
    def arrays(self, result: Any) -> np.ndarray:
        """What a result has beside its images: tokens or latents, as `beside` says."""

    @abstractmethod
    def steps_of(self, generation: Any, prompt: Any, options: Mapping[str, Any]) -> np.ndarray:
        """The images after every step of a call with a trace, float32 [steps, count, H, W, 3].

        `generation` is what `generate` drew of the prompt with these options.
        """

    def drawn_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The size and the settings that `generate` uses where it is given these arguments."""
        own = self.defaults
        return own | {name: options[name] for name in own if options.get(name) is not None}

    def run_name(self) -> str:
        """A digest of its configs and weights: what records call the run."""
        if self._run is None:
            self._run = run_digest(self.parts())
        return self._run

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Padded lengths of texts, each alone: those of equal lengths can be drawn together.

        Raises:
          PromptError: one is too long for this run.
        """
        return ()

    @abstractmethod
    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError where `generate` would refuse a size or a sampler's setting."""

    def cut_text(self, text: str) -> str:
        """The part of a text that is not too long for this run."""
        return text

    def __repr__(self) -> str:
        own = self.defaults
        count = sum(x.size for _, tree in self.parts().values() for x in jax.tree.leaves(tree))
        return (
            f"{type(self).__name__}: {self.config.method} run, {count / 1e6:.1f}M parameters, "
            f"images of {own['height']}x{own['width']} pixels\n  {self._use(own)}"
        )

    def _use(self, own: Mapping[str, Any]) -> str:
        """What its repr says of use."""
        told = ("num_steps", "super_resolution_steps", "guidance_scale", "temperature", "stepper")
        settings = ", ".join(f"{name}={own[name]!r}" for name in told if name in own)
        return (
            f"draws by default with {settings}\n  "
            "pipe(prompt, num_images_per_prompt=4, seed=None), pipe.embed, pipe.encode, "
            "pipe.decode, pipe.defaults, pipe.warm_up; help(pipe.__call__) says more"
        )

    @overload
    def __call__(
        self, prompt: Any = None, *, output_type: Literal["pil"] = "pil", **options: Any
    ) -> Images: ...
    @overload
    def __call__(
        self,
        prompt: Any = None,
        *,
        output_type: Literal["np", "array", "tokens", "latents"],
        **options: Any,
    ) -> np.ndarray: ...
    def __call__(
        self,
        prompt: Any = None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        prompt_embeds: PromptEmbeds | None = None,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        strength: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        temperature: float | tuple[float, float] | None = None,
        seed: int | Sequence[int] | None = 0,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        progress: bool = False,
        callback: Callback | None = None,
        callback_every: int = 1,
        **options: Any,
    ) -> Any:
        """Generates images.

        `num_inference_steps` is understood as num_steps, `num_images` as num_images_per_prompt and
        `guidance` as guidance_scale.

        Args:
          prompt: one text or several; for token predictors also `Condition`s (prompts.py).
          negative_prompt: what to steer away from; one text, or one per prompt. None is none.
          prompt_embeds: from `embed`, instead of the two.
          image: to start from, or with a mask to keep: a file, PIL image or array [height, width,
            3] of any size, which is scaled to cover the size that is drawn and cut to its middle.
          mask: white or True is drawn anew; every other pixel is the scaled image's own.
          strength: how far the image is noised, in (0, 1]; 1 forgets it. Default 0.6, with mask 1.
          height: pixels; default the training size.
          width: pixels; default the training size.
          num_steps: predictions; fewer is faster.
          guidance_scale: 1 switches guidance off; a pair ramps from the first to the last step.
          temperature: of a token's draw; a pair ramps. Diffusion has none.
          seed: one seed, or one per prompt; None draws one, which the result has. An image depends
            on its prompt, its seed and its number among the prompt's images alone.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          output_type: "pil", "np" (float32 [count, height, width, 3] in [0, 1]; also "array"),
            "tokens" of a token predictor or "latents" of Würstchen's Stage C.
          progress: shows a bar.
          callback: called while it samples as (steps done, of all steps, PIL images so far).
            Where it returns False or raises `StopSampling`, the call ends with what there is.
          callback_every: steps between two calls of it; the last step is always told.
          **options: further arguments of `generate`: batch_size, and settings of the sampler.

        Returns:
          `Images`, a list of PIL images that shows itself in a notebook, or an array.

        Raises:
          PromptError, ImageError, ValueError: naming value and fix, before anything is compiled.

        Example:
          >>> pipe = paella_jax.load("RUN")
          >>> images = pipe("a red circle", num_steps=8, seed=None, num_images_per_prompt=4)
          >>> images.save("folder"), images.grid(), images.seeds
        """
        asked = dict(locals())
        del asked["self"], asked["options"]
        return answer(self, asked, options)

    def warm_up(self, num_images: int | Sequence[int] = 1, **options: Any) -> float:
        """Compiles what calls need, so that the first one does not wait; draws nothing.

        Args:
          num_images: images of a call; a list compiles for each of them.
          **options: of a call, as far as they will not be its defaults: other steps, strengths,
            temperatures and guidance share a program, other sizes and samplers do not.

        Returns:
          Seconds it took. What a call would refuse is refused likewise.

        Example:
          >>> pipe.warm_up(num_images=[1, 8])
        """
        began, counts = time.perf_counter(), num_images
        for count in counts if isinstance(counts, list | tuple) else [counts]:
            text = None if options.get("prompt_embeds") is not None else "a"
            given = {"prompt": text, "num_images_per_prompt": count} | options
            named = {name: given.pop(name) for name in DEFAULTS if name in given}
            answer(self, DEFAULTS | named, given, rehearse=True)
        return time.perf_counter() - began


def background_of(config: ConfigDict) -> str:
    """The colour behind transparent images of a run; runs older than the setting have white."""
    return config.data.get("background", WHITE)
