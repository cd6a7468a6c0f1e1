"""What every pipeline does around its compiled programs: the call, options, keys and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.encoders.byte_tokenizer import PromptError, check_prompts
from paella_jax.images.modes import WHITE
from paella_jax.images.read import ImageLike, read_image
from paella_jax.images.write import to_uint8
from paella_jax.sharing.pipeline import Origin, save_pipeline
from paella_jax.training.placing import batch_sharding, fetch, place
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.typing import Key, Tree


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
    """

    negative_prompt: str | Sequence[str] | None = ""
    height: int | None = None
    width: int | None = None
    seed: int | Sequence[int] = 0
    num_images_per_prompt: int = 1
    batch_size: int = 64
    trace: bool = False

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

    def keys(self, count: int) -> Key:
        """Keys [count * copies] of the images of `count` prompts. Raises ValueError."""
        return image_keys(self.seeds(count), self.num_images_per_prompt)

    def repeat(self, values: Iterable[Any]) -> list[Any]:
        """What belongs to the prompts -> the same for each of their images."""
        return [value for value in values for _ in range(self.num_images_per_prompt)]


class Pipeline:
    """The call that all pipelines share; `generate` and `_states` are each pipeline's own."""

    config: ConfigDict
    origin: Origin | None = None  # what `paella_jax.load` made it from

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

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Draws; the result has `images`, and `trace` where asked for."""
        raise NotImplementedError

    def parts(self) -> dict[str, tuple[ConfigDict, Tree]]:
        """Config and weights of each run it draws with, by name; empty of the one that counts."""
        raise NotImplementedError

    def text_lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Padded lengths of texts, each alone: those of equal lengths can be drawn together.

        Raises:
          PromptError: one is too long for this run.
        """
        return ()

    def check_settings(self, **settings: Any) -> None:
        """Raises ValueError where `generate` would refuse a size or a sampler's setting."""

    def cut_text(self, text: str) -> str:
        """The part of a text that is not too long for this run."""
        return text

    def _states(self, result: Any) -> Iterable[np.ndarray]:
        """What a callback sees of a result with a trace, step after step."""
        raise NotImplementedError

    def __call__(
        self,
        prompt: Any,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        temperature: float | tuple[float, float] | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        callback: Callable[[int, np.ndarray], None] | None = None,
        **options: Any,
    ) -> list[Image.Image] | np.ndarray:
        """Generates images.

        Args:
          prompt: one text or several; for token predictors also `Condition`s (prompts.py).
          negative_prompt: what to steer away from; one text, or one per prompt. None is none.
          height: pixels; default the training size.
          width: pixels; default the training size.
          num_steps: predictions; fewer is faster.
          guidance_scale: 1 switches guidance off; a pair ramps from the first to the last step.
          temperature: of a token's draw; a pair ramps. Diffusion has none.
          seed: one seed, or one per prompt. An image depends on its prompt, its seed and its number
            among the prompt's images, not on the rest of the call.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          output_type: "pil" or "array" (float32 [count, height, width, 3] in [0, 1]).
          callback: called as (step, images so far) for every step once sampling is done. With two
            runs the base's small images come first and the numbers go on; Würstchen gives Stage C's
            latents.
          **options: further arguments of `generate`.

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
            **options,
        )
        if callback is not None:
            for step, state in enumerate(self._states(result)):
                callback(step, state)
        if output_type == "array":
            return result.images
        return [Image.fromarray(image) for image in to_uint8(result.images)]


def background_of(config: ConfigDict) -> str:
    """The colour behind transparent images of a run; runs older than the setting have white."""
    return config.data.get("background", WHITE)


def all_devices() -> Mesh:
    """The mesh that spreads batches over all devices, each with whole weights."""
    return make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))


def on_mesh(weights: Tree, mesh: Mesh) -> Tree:
    """Weights that lie on the mesh already stay as they are sharded; others are put there whole."""
    lies_there = lambda x: isinstance(x, jax.Array) and getattr(x.sharding, "mesh", None) == mesh
    put = lambda x: x if lies_there(x) else place(x, replicated(mesh))
    return jax.tree.map(put, weights)


def one_per_prompt(values: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or one for each. Raises ValueError otherwise."""
    listed = list(values) if isinstance(values, list | tuple | np.ndarray) else [values]
    if len(listed) == 1:
        return listed * count
    if len(listed) != count:
        raise ValueError(f"{len(listed)} values of {name} for {count} prompts; give one or {count}")
    return listed


def image_keys(seeds: Sequence[int], copies: int) -> Key:
    """Keys [prompts * copies]: an image's comes from its prompt's seed and its number only.

    Raises:
      ValueError: copies below 1, or an impossible seed.
    """
    if copies < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {copies}")
    numbers = np.tile(np.arange(copies), len(seeds))
    return numbered_keys(np.repeat(np.asarray(seeds), copies), numbers)


def numbered_keys(seeds: np.ndarray, numbers: np.ndarray) -> Key:
    """Key of the image with number n among those of a seed, for each pair.

    Raises:
      ValueError: a seed that is no whole number from 0 to 2^32 - 1.
    """
    for seed in np.asarray(seeds).tolist():
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed!r} must be a whole number from 0 to {2**32 - 1}")
    return jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(
        jnp.asarray(np.asarray(seeds, np.uint32)), jnp.asarray(numbers)
    )


def in_batches(
    run: Callable[[Tree], tuple[Any, ...]], request: Tree, count: int, batch_size: int, mesh: Mesh
) -> tuple[np.ndarray, ...]:
    """Runs a program on pieces of a request; the last one is filled up with repeats.

    Args:
      run: piece -> arrays, each with the batch first.
      request: arrays with `count` in front.
      count: number of images.
      batch_size: bounds a piece; it is rounded up to whole devices.
      mesh: pieces are spread over its batch axes.

    Raises:
      ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-min(batch_size, count) // shards) * shards
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        piece = jax.tree.map(lambda x, rows=rows: x[rows], request)
        with jax.set_mesh(mesh):  # a preview runs inside of training, on another mesh
            outputs = run(place(piece, batch_sharding(mesh)))
        parts.append([fetch(x)[: count - start] for x in outputs])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
